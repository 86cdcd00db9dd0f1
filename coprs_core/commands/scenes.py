"""`scenes`: draw picture-book scenes with their questions."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from coprs_core.commands.options import positive_int

SUMMARY = "draw picture-book scenes with questions and replies"
DESCRIPTION = """\
Draw picture-book scenes, each with an instruction and the target reply:
00000.png, 00000_mask.png (empty where nothing fits) and 00000.json. The same seed
always draws the same scenes; no two splits share one. The test split also holds
pairs of kind and colour, and wordings, that training never shows.

example:
  coprs scenes --seed 7 --count 20 --out scenes
"""


def add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--seed", type=int, default=0, metavar="S", help="number of the first scene (default 0)")
    add("--count", type=positive_int, default=10, metavar="N", help="how many (default 10)")
    add("--split", choices=("train", "validation", "test"), default="train")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the files")


def run(options: Namespace) -> int:
    from PIL import Image
    from tqdm import tqdm

    from coprs_core.export.archive import make_writable_folder
    from coprs_core.mini.world.questions import draw_examples

    folder = make_writable_folder(options.out)
    drawn = draw_examples(options.split, options.seed, options.count)
    for i, (scene, question) in enumerate(tqdm(drawn, total=options.count, unit="scene")):
        Image.fromarray(scene.image).save(folder / f"{i:05d}.png")
        Image.fromarray(scene.mask(*question.targets)).save(folder / f"{i:05d}_mask.png")
        things = [
            {
                "kind": t.kind,
                "colour": t.colour,
                "place": t.place,
                "centre": t.centre,
                "box": t.box,
                "area": t.area,
            }
            for t in scene.objects
        ]
        facts = {
            "seed": scene.seed,
            "split": scene.split,
            "family": question.family,
            "instruction": question.instruction,
            "reply": question.reply,
            "targets": question.targets,
            "unseen_wording": question.unseen_wording,
            "things": things,
        }
        (folder / f"{i:05d}.json").write_text(json.dumps(facts, indent=1) + "\n")
    return 0
