"""What each command of `python -m coprs_core` does. Commands return the exit code."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from coprs_core.engine import load
from coprs_core.errors import CoPRSError
from coprs_core.evaluate import evaluate, report, table
from coprs_core.photos import open_photo
from coprs_core.pictures import save_answer
from coprs_core.questions import examples
from coprs_core.results import FOUND, NOTHING_FOUND, UNFINISHED

EXIT_CODES = {FOUND: 0, NOTHING_FOUND: 3, UNFINISHED: 4}
USER_MISTAKE = 2


def segment(options: argparse.Namespace) -> int:
    """Answer one instruction about one photo; stream the thought, then write the files."""
    folder = _writable(options.out) if options.out else None
    photo = open_photo(options.photo)
    engine = load(options.model, options.device, options.dtype, options.quantize)
    for update in engine.stream(photo, options.instruction, options.max_new_tokens):
        if update.new and not options.json:
            print(update.new, end="", flush=True)
    result = update.result
    if options.json:
        print(result.to_json())
    else:
        print(f"\n\n{result.outcome}. {result.reason}")
        if result.regions:
            print(f"IoU of prior and mask: {result.prior_iou:.2f}")
        print(" · ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.seconds.items()))
    if folder:
        written = save_answer(folder, np.asarray(photo.image), result)
        if not options.json:
            print("written: " + ", ".join(str(p) for p in written))
    return EXIT_CODES[result.outcome]


def scenes(options: argparse.Namespace) -> int:
    """Draw scenes with their questions into a folder."""
    folder = _writable(options.out)
    for i, (scene, question) in enumerate(
        tqdm(examples(options.split, options.seed, options.count), total=options.count, unit="scene")
    ):
        Image.fromarray(scene.image).save(folder / f"{i:05d}.png")
        Image.fromarray(scene.mask(question.target)).save(folder / f"{i:05d}_mask.png")
        facts = {
            "seed": scene.seed, "split": scene.split, "family": question.family, "instruction": question.instruction,
            "reply": question.reply, "target": question.target, "unseen_wording": question.unseen_wording,
            "things": [{"kind": t.kind, "colour": t.colour, "place": t.place, "centre": t.centre, "box": t.box, "area": t.area}
                       for t in scene.things],
        }  # fmt: skip
        (folder / f"{i:05d}.json").write_text(json.dumps(facts, indent=1) + "\n")
    return 0


def evaluate_model(options: argparse.Namespace) -> int:
    """Measure a checkpoint on drawn scenes."""
    engine = load(options.model, options.device, options.dtype, options.quantize)
    answered = evaluate(engine, options.split, options.seed, options.count)
    measured = report(list(tqdm(answered, total=options.count, unit="scene", file=sys.stderr)))
    print(json.dumps(measured, indent=1) if options.json else table(measured))
    return 0


def train(options: argparse.Namespace) -> int:
    """Train the miniature, or go on where a run stopped."""
    from coprs_core.training.run import train_miniature  # inference never loads training

    train_miniature(_writable(options.out), options.device, options.workers, options.stage, options.threads)
    return 0


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise CoPRSError(
            f"The folder {str(folder)!r} cannot be made ({problem.strerror}): choose another --out."
        ) from problem
    return folder
