"""`python -m coprs_core`: the command line."""

import argparse
import os
import sys
from pathlib import Path

from coprs_core.errors import CoPRSError

ABOUT = "CoPRS: reasoning segmentation that people can see into."
SEGMENT = """\
Find what an instruction means in a photo. The model thinks aloud, then points:
its focus token becomes a heatmap (the positional prior), and the heatmap a mask.

examples:
  python -m coprs_core segment assets/examples/rain.png "the thing that keeps the rain off" --out answer
  python -m coprs_core segment photo.jpg "the smaller dog" --model path/to/checkpoint --json

The bundled model "mini" knows picture-book scenes only; `python -m coprs_core scenes` draws some.

files in --out:
  result.json   outcome, thought, masks as COCO RLE, timings, settings
  prior.npy     the prior, float32 [H, W] in [0, 1]; prior.png is its picture
  mask.png      the mask, 1 bit a pixel; overlay.png shows it over the photo
  chain.png     photo, thought, prior and mask in one figure

exit codes:
  0 found · 3 nothing found · 4 unfinished · 2 a mistake in what was asked
"""
SCENES = """\
Draw picture-book scenes, each with an instruction and the reply that it deserves:
00000.png, 00000_mask.png (empty where nothing fits) and 00000.json. The same seed
always draws the same scenes; no two splits share one. The test split also holds
pairs of kind and colour, and wordings, that training never shows.

example:
  python -m coprs_core scenes --seed 7 --count 20 --out scenes
"""
EVALUATE = """\
Answer drawn scenes and print how well: by family of instruction, by size of the
target, and on what training never showed. gIoU is the mean IoU per example, where
both empty counts 1 and a mask where nothing fits counts 0.

example:
  python -m coprs_core evaluate --model mini --data scenes --split test --count 1000
"""
TRAIN = """\
Train the miniature from nothing, on scenes drawn as it goes: the vision tower, the
image encoder with prior and decoder, the language model, then all of them jointly.
Sizes and stages stand in coprs_core/training/mini.py. A run that was stopped goes
on where it left off; the finished checkpoint is OUT/checkpoint.

examples:
  python -m coprs_core train mini --out runs/mini
  python -m coprs_core train mini --out runs/mini --device cuda --workers 8
"""


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser("python -m coprs_core", description=ABOUT)
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, page: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=summary, description=page, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    p = command("segment", "find what an instruction means in a photo", SEGMENT)
    p.add_argument(
        "photo", type=Path, metavar="PHOTO", help="a picture file of any common kind, at most 8192 pixels a side"
    )
    p.add_argument("instruction", metavar="INSTRUCTION", help="what to look for, in words; at most 2,000 characters")
    p.add_argument("--out", type=Path, metavar="DIR", help="write the answer's files into this folder")
    p.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    p.add_argument("--max-new-tokens", type=int, metavar="N", help="bound of the reply (default: the checkpoint's own)")
    _add_model(p)

    p = command("scenes", "draw picture-book scenes with questions and replies", SCENES)
    p.add_argument("--seed", type=int, default=0, metavar="S", help="number of the first scene (default 0)")
    p.add_argument("--count", type=_count, default=10, metavar="N", help="how many (default 10)")
    p.add_argument("--split", choices=("train", "validation", "test"), default="train")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")

    p = command("evaluate", "measure a checkpoint on drawn scenes", EVALUATE)
    p.add_argument("--data", choices=("scenes",), default="scenes", help="what to answer (default: scenes)")
    p.add_argument("--split", choices=("train", "validation", "test"), default="test")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="number of the first scene (default 0)")
    p.add_argument("--count", type=_count, default=1000, metavar="N", help="how many scenes (default 1000)")
    p.add_argument("--json", action="store_true", help="print all figures, and every row, as JSON")
    _add_model(p)

    p = command("train", "train the miniature from nothing", TRAIN)
    p.add_argument("recipe", choices=("mini",), help="the recipe: mini")
    p.add_argument(
        "--out", type=Path, default=Path("runs/mini"), metavar="DIR", help="checkpoints and logs (default runs/mini)"
    )
    p.add_argument(
        "--stage", choices=("eyes", "focus", "language", "joint"), help="this stage alone (default: all that are left)"
    )
    p.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu (default auto)")
    p.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that draw scenes (default 0: the run itself)"
    )
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    return main


def _add_model(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--model", default="mini", metavar="NAME|FOLDER", help='"mini" or a checkpoint folder (default mini)'
    )
    p.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu (default auto)")
    p.add_argument(
        "--dtype", default="auto", help="auto, bf16, fp16 or fp32 (default auto: bf16 on a GPU, fp32 on a CPU)"
    )
    p.add_argument(
        "--quantize", default="none", help="none, nf4 or int8: the language model's linear layers (default none)"
    )


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    from coprs_core import commands  # after parsing: --help answers at once

    run = {
        "segment": commands.segment,
        "scenes": commands.scenes,
        "evaluate": commands.evaluate_model,
        "train": commands.train,
    }
    try:
        return run[options.command](options)
    except CoPRSError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return commands.USER_MISTAKE
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
