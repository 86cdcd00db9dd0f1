"""What each command of `python -m coprs_core` does. Commands return the exit code."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from coprs_core import catalogue, probes
from coprs_core.engine import load
from coprs_core.errors import CoPRSError
from coprs_core.evaluate import evaluate, report, table
from coprs_core.machine import choose_device
from coprs_core.photos import open_photo
from coprs_core.pictures import heads_figure, save_answer, trace_figure
from coprs_core.questions import examples
from coprs_core.results import FOUND, NOTHING_FOUND, UNFINISHED

EXIT_CODES = {FOUND: 0, NOTHING_FOUND: 3, UNFINISHED: 4}
USER_MISTAKE = 2


def segment(options: argparse.Namespace) -> int:
    """Answer one instruction about one photo; stream the thought, then write the files."""
    if options.probe and not options.out:
        raise CoPRSError("--probe writes files, and there is no folder for them: add --out DIR.")
    folder = _writable(options.out) if options.out else None
    photo = open_photo(options.photo)
    engine = load(options.model, options.device, options.dtype, options.quantize, options.sam)
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
        pixels = np.asarray(photo.image)
        written = save_answer(folder, pixels, result) + _save_probes(folder, engine, pixels, result, options.probe)
        if not options.json:
            print("written: " + ", ".join(str(p) for p in written))
    return EXIT_CODES[result.outcome]


def _save_probes(folder: Path, engine, pixels: np.ndarray, result, kinds: list[str]) -> list[Path]:
    written = []
    if "sentences" in kinds:
        looks = probes.focus_after_each_sentence(engine, pixels, result)
        settled = probes.settles_at(looks)
        told = {"settles_at": settled, "sentences": [probes.without_pixels(x) for x in looks]}
        (folder / "sentences.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        np.save(folder / "sentences.npy", np.stack([x.prior for x in looks]))
        steps = [(x.text, x.prior, x.iou, x.spread) for x in looks]
        trace_figure(pixels, steps, settled).savefig(folder / "sentences.png", dpi=120)
        written += [folder / f"sentences.{kind}" for kind in ("json", "npy", "png")]
    if "heads" in kinds and result.regions:
        heads = probes.heads(engine, pixels, result)
        np.save(folder / "heads.npy", heads)
        heads_figure(pixels, result.prior, heads).savefig(folder / "heads.png", dpi=120)
        written += [folder / "heads.npy", folder / "heads.png"]
    return written


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
    engine = load(options.model, options.device, options.dtype, options.quantize, options.sam)
    answered = evaluate(engine, options.split, options.seed, options.count)
    measured = report(list(tqdm(answered, total=options.count, unit="scene", file=sys.stderr)))
    print(json.dumps(measured, indent=1) if options.json else table(measured))
    return 0


def train(options: argparse.Namespace) -> int:
    """Train the miniature, or go on where a run stopped."""
    from coprs_core.training.run import train_miniature  # inference never loads training

    train_miniature(_writable(options.out), options.device, options.workers, options.stage, options.threads)
    return 0


def models(options: argparse.Namespace) -> int:
    """List what can be loaded by name, and whether it fits this machine."""
    rows = catalogue.rows(choose_device(options.device), options.quantize, options.sam)
    print(json.dumps([asdict(r) for r in rows], indent=1) if options.json else catalogue.table(rows))
    return 0


def examine(options: argparse.Namespace) -> int:
    """Tell what this machine has and the first thing to do; exit code 0 means ready."""
    from coprs_core import doctor

    checks = doctor.examine(options.model, options.device, options.quantize, options.sam)
    print(doctor.screen(checks))
    return 0 if doctor.verdict(checks) == "ready" else 1


def convert_checkpoint(options: argparse.Namespace) -> int:
    """Turn the authors' training output into a checkpoint folder."""
    from coprs_core import convert

    convert.convert(options.folder, options.sam, options.out, _prompt(options.prompt), options.dtype)
    print(f"written: {options.out}; open it with: python app.py --model {options.out}")
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Make the starting point of training from a published model and SAM."""
    from coprs_core import convert

    convert.prepare(options.base, options.sam, options.out, _prompt(options.prompt), options.dtype)
    print(f"written: {options.out}")
    return 0


def measure(options: argparse.Namespace) -> int:
    """Measure speed and memory, with random weights at true size or with a checkpoint."""
    from coprs_core import benchmark

    args = (options.sam, options.device, options.dtype, options.quantize, options.tokens)
    if options.random_weights:
        measured = benchmark.benchmark(options.random_weights, *args, options.folder)
    else:
        measured = benchmark.measure(options.model, options.model, *args)
    print(benchmark.as_json(measured) if options.json else benchmark.table(measured))
    return 0


def _prompt(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise CoPRSError(
            f"The prompt template {str(file)!r} cannot be read ({problem}): give a text file."
        ) from problem


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise CoPRSError(
            f"The folder {str(folder)!r} cannot be made ({problem.strerror}): choose another --out."
        ) from problem
    return folder
