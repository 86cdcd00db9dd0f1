"""What each command of `python -m coprs_core` does. Commands return the exit code."""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from glob import glob
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from coprs_core import probes

from coprs_core.checkpoints import catalogue
from coprs_core.archive import open_answer, save_answer, save_trace
from coprs_core.answer.compare import against_answer, against_truth, read_truth
from coprs_core.answer.engine import Engine, check_max_new_tokens, load
from coprs_core.errors import CoPRSError
from coprs_core.evaluate import evaluate, report, table
from coprs_core.machine import choose_device
from coprs_core.photos import Photo, open_photo
from coprs_core.answer.pictures import chain_figure, difference_overlay, heads_figure, trace_figure, truth_figure
from coprs_core.prompts import check_instruction
from coprs_core.world.questions import examples
from coprs_core.answer.results import FOUND, NOTHING_FOUND, UNFINISHED, Result
from coprs_core.answer.flags import FLAGS, flags
from coprs_core.zoom import zoom_in

EXIT_CODES = {FOUND: 0, NOTHING_FOUND: 3, UNFINISHED: 4}
USER_MISTAKE, SOME_FAILED = 2, 1


def segment(options: argparse.Namespace) -> int:
    """Answer one instruction about one photo, streaming the thought, or about each of many."""
    further = (options.thought, options.again, options.again_model, options.truth)
    if (options.probe or options.word or any(v is not None for v in further)) and not options.out:
        raise CoPRSError("Probes and comparisons write files, and there is no folder for them: add --out DIR.")
    check_instruction(options.instruction)
    if options.again is not None:
        check_instruction(options.again)
    if options.max_new_tokens is not None:
        check_max_new_tokens(options.max_new_tokens)
    photos = _photos(options.photo)
    folder = _writable(options.out) if options.out else None
    if len(photos) > 1 or options.photo.is_dir():
        return _segment_many(options, photos, folder)
    photo = open_photo(photos[0])
    truth = read_truth(options.truth, photo.size) if options.truth else None
    engine = _engine(options)
    for update in engine.stream(photo, options.instruction, options.max_new_tokens):
        if update.new and not options.json:
            print(update.new, end="", flush=True)
    result = update.result
    print(result.to_json() if options.json else "\n\n" + _told(result))
    if folder:
        written = save_answer(folder, photo, result) + _save_probes(folder, engine, photo, result, options, truth)
        if not options.json:
            print("written: " + ", ".join(str(p) for p in written))
    return EXIT_CODES[result.outcome]


def _segment_many(options: argparse.Namespace, photos: list[Path], folder: Path | None) -> int:
    """One folder a photo under --out. What is there already is not done again; a photo that fails is told and passed over."""
    if folder is None or options.truth or options.json:
        raise CoPRSError("Many photos need a folder for their answers, and no --truth or --json: add --out DIR.")
    engine, failed = None, 0
    asked = {
        k: getattr(options, k) for k in ("instruction", "model", "probe", "word", "thought", "again", "again_model")
    }
    root = os.path.commonpath([p.absolute().parent for p in photos])
    bar = tqdm(photos, unit="photo", file=sys.stderr)
    for path in bar:
        name = os.path.relpath(path.absolute(), root)
        place = folder / name
        if _asked(place) == asked:
            continue
        engine = engine or _engine(options)
        try:
            photo = open_photo(path)
            result = engine.segment(photo, options.instruction, options.max_new_tokens)
            save_answer(_writable(place), photo, result)
            _save_probes(place, engine, photo, result, options, None)
            (place / "asked.json").write_text(json.dumps(asked, indent=1) + "\n")  # last: says that nothing is missing
            bar.write(f"{name}: {result.outcome}", file=sys.stdout)
        except (CoPRSError, OSError) as problem:
            failed += 1
            bar.write(f"{name}: {problem}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(photos)} photos failed; the others are in {folder}", file=sys.stderr)
    return SOME_FAILED if failed else 0


def _asked(place: Path) -> dict | None:
    """What the answer in a folder was asked, where all of it is there."""
    try:
        return (
            json.loads((place / "asked.json").read_text(encoding="utf-8")) if (place / "result.json").exists() else None
        )
    except (OSError, ValueError, RecursionError):
        return None


def _photos(given: Path) -> list[Path]:
    """The photos that a path means: itself, the picture files of a folder, or the matches of a glob."""
    if given.is_dir():
        kinds = Image.registered_extensions()
        found = sorted(p for p in given.iterdir() if p.suffix.lower() in kinds and p.is_file())
        if not found:
            raise CoPRSError(f"The folder {str(given)!r} holds no picture files: name one that does.")
        return found
    if given.exists() or not any(c in str(given) for c in "*?["):
        return [given]
    found = sorted(p for p in map(Path, glob(str(given), recursive=True)) if p.is_file())
    if not found:
        raise CoPRSError(f"No file matches {str(given)!r}: check the pattern.")
    return found


def open_saved(options: argparse.Namespace) -> int:
    """Show a saved answer, without any model."""
    saved = open_answer(options.answer)
    if options.json:
        print(saved.result.to_json())
    else:
        print(f"“{saved.result.instruction}”\n\n{saved.result.reasoning}\n\n{_told(saved.result)}")
    if options.out:
        written = save_answer(_writable(options.out), saved.photo, saved.result)
        if not options.json:
            print("written: " + ", ".join(str(p) for p in written))
    return EXIT_CODES[saved.result.outcome]


def _told(result: Result) -> str:
    lines = [f"{result.outcome}. {result.reason}"]
    if result.mask.any():
        lines.append(f"IoU of prior and mask: {result.prior_iou:.2f}")
    lines += [f"careful: {FLAGS[name]}" for name in flags(result)]
    lines.append(" · ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.seconds.items()))
    return "\n".join(lines)


def _engine(options: argparse.Namespace, model: str | None = None) -> Engine:
    return load(options.model if model is None else model, options.device, options.dtype, options.quantize, options.sam)


def _save_probes(
    folder: Path, engine: Engine, photo: Photo, result: Result, options: argparse.Namespace, truth: np.ndarray | None
) -> list[Path]:
    """Ask what `options` asks of an answer and write what comes."""
    pixels, written = np.asarray(photo.image), []

    def keep(name: str, told: dict, *figures) -> None:
        (folder / f"{name}.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for figure in figures:
            figure.savefig(folder / f"{name}.png", dpi=120)
        written.extend(folder / f"{name}.{kind}" for kind in ("json", "png")[: 1 + len(figures)])

    def keep_result(name: str, other: Result, told: dict) -> None:
        keep(name, told | {"result": other.to_dict()}, chain_figure(pixels, other))
        if other.regions:
            np.save(folder / f"{name}.npy", other.prior)
            Image.fromarray(other.mask).save(folder / f"{name}_mask.png")
            written.extend([folder / f"{name}.npy", folder / f"{name}_mask.png"])

    if "sentences" in options.probe:
        written += save_trace(folder, pixels, probes.focus_after_each_sentence(engine, photo, result))
    if "words" in options.probe:
        keep("words", {"words": probes.words(engine, result)})
    for word in options.word:
        number = probes.find_word(engine, result, word)
        look = probes.focus_at_word(engine, photo, result, number)
        np.save(folder / f"word_{number}.npy", look.prior)
        told = probes.without_pixels(look) | {"number": number}
        keep(f"word_{number}", told, trace_figure(pixels, [(look.text, look.prior, look.iou, look.spread)], None))
    if "heads" in options.probe and result.regions:
        heads = probes.heads(engine, photo, result)
        np.save(folder / "heads.npy", heads)
        heads_figure(pixels, result.prior, heads).savefig(folder / "heads.png", dpi=120)
        written += [folder / "heads.npy", folder / "heads.png"]
    if "zoom" in options.probe and result.regions:
        try:
            zoomed, crop = zoom_in(engine, photo, result)
            keep_result("zoomed", zoomed, {"crop": asdict(crop)})
        except CoPRSError as problem:  # a large thing: no reason to give up the other files
            keep("zoomed", {"problem": str(problem)})
    if options.thought is not None:
        other = probes.focus_again(engine, photo, result.instruction, options.thought)
        keep_result("focus_again", other, asdict(against_answer(result, other)))
    if options.again is not None or options.again_model is not None:
        asked = engine if options.again_model is None else _engine(options, options.again_model)
        other = asked.segment(photo, options.again or result.instruction, options.max_new_tokens)
        keep_result("again", other, asdict(against_answer(result, other)))
        Image.fromarray(difference_overlay(pixels, result.mask, other.mask)).save(folder / "again_difference.png")
        written.append(folder / "again_difference.png")
    if truth is not None:
        measured = against_truth(result, truth)
        keep("truth", measured.to_dict(), *([truth_figure(pixels, result, truth, measured)] if result.regions else []))
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
    engine = _engine(options)
    answered = evaluate(engine, options.split, options.seed, options.count)
    measured = report(list(tqdm(answered, total=options.count, unit="scene", file=sys.stderr)))
    print(json.dumps(measured, indent=1) if options.json else table(measured))
    return 0


def train(options: argparse.Namespace) -> int:
    """Train the miniature, or go on where a run stopped."""
    from coprs_core.training.mini.run import train_miniature  # inference never loads training

    train_miniature(_writable(options.out), options.device, options.workers, options.stage, options.threads)
    return 0


def models(options: argparse.Namespace) -> int:
    """List what can be loaded by name, and whether it fits this machine."""
    rows = catalogue.rows(choose_device(options.device), options.quantize, options.sam)
    print(json.dumps([asdict(r) for r in rows], indent=1) if options.json else catalogue.table(rows))
    return 0


def examine(options: argparse.Namespace) -> int:
    """Tell what this machine has and the first thing to do; exit code 0 means ready."""
    from coprs_core.checkpoints import doctor

    checks = doctor.examine(options.model, options.device, options.quantize, options.sam)
    print(doctor.screen(checks))
    return 0 if doctor.verdict(checks) == "ready" else 1


def convert_checkpoint(options: argparse.Namespace) -> int:
    """Turn the authors' training output into a checkpoint folder."""
    from coprs_core.checkpoints import convert

    convert.convert(options.folder, options.sam, options.out, _prompt(options.prompt), options.dtype)
    print(f"written: {options.out}; open it with: python app.py --model {options.out}")
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Make the starting point of training from a published model and SAM."""
    from coprs_core.checkpoints import convert

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
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as problem:
        raise CoPRSError(
            f"The folder {str(folder)!r} cannot be made or written to ({problem.strerror}): choose another --out."
        ) from problem
    return folder
