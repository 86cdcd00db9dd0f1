"""`segment`: find what an instruction means in a photo, or in many."""

import argparse
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from coprs_core.commands.options import (
    add_frame_option,
    add_model_options,
    non_negative_int,
    parse_frame,
    parse_load_options,
    pick_fields,
    positive_int,
)
from coprs_core.errors import CoPRSError, did_you_mean
from coprs_core.probes import PROBES

if TYPE_CHECKING:
    import numpy as np

    from coprs_core.answer.engine import Engine
    from coprs_core.answer.results import Result
    from coprs_core.answer.updates import Update
    from coprs_core.batch import BatchOptions, BatchOutcome
    from coprs_core.example import Example
    from coprs_core.photos.photo import Photo
    from coprs_core.probes.finding import Finding

SUMMARY = "find what an instruction means in a photo"
DESCRIPTION = """\
Find what an instruction means in a photo. The model thinks aloud, then points:
its focus token becomes a heatmap (the positional prior), and the heatmap a mask.

examples:
  coprs segment assets/examples/rain.png "something to stay dry with" --out answer
  coprs segment photo.jpg "the smaller dog" --model path/to/checkpoint --json
  coprs segment photos/ "the umbrella" --out answers --probe sentences
  coprs segment photo.jpg "the smaller dog" --out answer \\
      --again "the larger dog" --truth true.png

The bundled model "mini" knows picture-book scenes only; `coprs scenes` draws some.

Many photos (a folder, a glob in quotes, or a .jsonl with lines such as
{"photo": "a.jpg", "instruction": "the cat"}): one folder each under --out, several
written together. Finished answers are skipped; a photo that cannot be read is reported
and skipped. They come without chain.* and cutout.png unless --figures is given.

files in --out (they fit the photo as it is shown: turned upright, where EXIF says so):
  result.json   outcome, thought, masks as COCO RLE, timings, settings, package versions
  photo.png     the photo as it was read
  prior.npy     the prior, float32 [H, W] in [0, 1]; prior.png, prior_overlay.png: pictures
  mask.png      the mask, 1 bit a pixel; cutout.png: the photo inside it; overlay.png
  chain.png     photo, thought, prior and mask in one figure; chain.pdf as vectors
  --stored-pixels writes masks (result.json's, too), priors and cut-out for the file's pixels
  as they are stored, before the turn of EXIF; "frame" in result.json says which they fit

files of --probe KINDS, with commas:
  sentences     sentences.*: where the model would have focused after each sentence of its
                thought: priors (.npy), IoU with the answer and spread (.json), a figure (.png);
                without a focus token where the words of each sentence looked
  words         words.json, words.npy: the reply token by token, numbered for --word
  attention     attention.*: where the words of each sentence looked: the language model's own
                attention, by the heads that tell a place; for models without a focus token too
  heads         heads.*: the attention maps before they are fused (.npy, .json, .png)
  zoom          zoomed.*: prior and mask read again around the prior's mass or the written box,
                for small things

further questions about one answer:
  --word W      word_N.*: where that word's own hidden state looks (a probe: not trained for)
  --thought T   focus_again.*: where the model focuses after this thought instead of its own
  --again I     again.*: another instruction about the same photo, and the differences
  --truth FILE  truth.*: IoU of prior and mask with a true mask, over the threshold

exit codes:
  0 found · 3 nothing found · 4 unfinished · 2 usage error
  many photos: 0 all done · 1 some failed
"""
EXIT_CODES = {"found": 0, "nothing found": 3, "unfinished": 4}
EXIT_SOME_FAILED = 1
_STATE_MARKS = {"holds": "✓", "broken": "✗", "open": "?"}
_FRAME_TEXTS = {
    "upright": (
        "masks fit the photo as it is shown, turned by its EXIF orientation {orientation}; "
        "--stored-pixels writes them for its file as stored"
    ),
    "stored": (
        "masks, priors and cut-out are written for the file as stored, before the turn of its EXIF "
        "orientation {orientation}"
    ),
}
_TRUTH_UNKNOWN = "Whether it is right is not known: segment with --truth FILE tells."


def add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "photo",
        metavar="PHOTO",
        help="a picture file, a folder of them, a glob in quotes, or a .jsonl of photos",
    )
    add(
        "instruction",
        metavar="INSTRUCTION",
        nargs="?",
        help="what to look for, in words; at most 2,000 characters",
    )
    add("--out", type=Path, metavar="DIR", help="write the answer's files into this folder")
    add(
        "--probe",
        type=_parse_probes,
        action="extend",
        default=[],
        metavar="KINDS",
        help=f"{', '.join(PROBES)}; with commas, or again",
    )
    add(
        "--word",
        action="append",
        default=[],
        metavar="W",
        help="a word of the reply, or its number",
    )
    add("--thought", metavar="TEXT", help="a thought to be read instead of the model's own")
    add("--again", metavar="INSTRUCTION", help="another instruction, to compare")
    add("--again-model", metavar="NAME|FOLDER|HUB_ID", help="another model, to compare")
    add(
        "--truth",
        type=Path,
        metavar="FILE",
        help="a true mask: PNG of the photo's size, or COCO RLE in .json",
    )
    add("--json", action="store_true", help="print the result as JSON and nothing else")
    add_frame_option(parser)
    add(
        "--at-once",
        type=positive_int,
        default=16,
        metavar="N",
        help="many photos: how many are answered together (default 16)",
    )
    add("--figures", action="store_true", help="many photos: draw the chain of each, too")
    add("--ray", metavar="ADDRESS", help="many photos: on a Ray cluster; local: on this machine")
    engines = "engines (default: one a GPU with --ray-gpus, else one for two CPUs)"
    add("--ray-actors", type=non_negative_int, default=0, metavar="N", help=engines)
    add("--ray-gpus", type=float, default=0.0, metavar="N", help="GPUs of each (default 0)")
    add("--ray-cpus", type=float, default=1.0, metavar="N", help="CPUs of each (default 1)")
    add(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="bound of the reply (default: the checkpoint's own)",
    )
    add_model_options(parser)


def _parse_probes(text: str) -> list[str]:
    kinds = [k.strip() for k in text.split(",") if k.strip()]
    if unknown := sorted(set(kinds) - set(PROBES)):
        choices = ", ".join(PROBES)
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is not known{did_you_mean(unknown[0], PROBES)}: choose from {choices}"
        )
    return kinds


def run(options: Namespace) -> int:
    """Answer one instruction about one photo, streaming the thought, or about each of many."""
    from coprs_core.answer.compare import read_truth
    from coprs_core.batch import find_examples, open_photo_or_url
    from coprs_core.export.archive import make_writable_folder, save_answer
    from coprs_core.files import find_file

    _check_options(options)
    examples = find_examples(options.photo, options.instruction)
    folder = make_writable_folder(options.out) if options.out else None
    is_listing = options.photo.lower().endswith(".jsonl")
    is_many = len(examples) > 1 or find_file(Path(options.photo)).is_dir() or is_listing
    if is_many or options.ray:
        return _run_many(options, examples, folder)
    photo = open_photo_or_url(str(examples[0].photo))
    truth = read_truth(options.truth, photo.size, photo.orientation) if options.truth else None
    engine = _load_engine(options)
    result = _stream_to_terminal(engine, photo, options)
    frame = parse_frame(options)
    print(result.to_json(frame) if options.json else "\n\n" + summarize(result, truth, frame))
    if folder:
        written = save_answer(folder, photo, result, frame=frame)
        other = partial(_load_engine, options, options.again_model)
        for finding in _run_probes(options, engine, other, photo, result, truth):
            if not options.json:
                print(f"{finding.stem()}: {finding.summary()}")
            written += finding.save(folder, photo)
        if not options.json:
            print("written: " + ", ".join(str(p) for p in written))
    return EXIT_CODES[result.outcome]


def _check_options(options: Namespace) -> None:
    """Refuse options that cannot be followed, before any work."""
    from coprs_core.answer.updates import check_max_new_tokens
    from coprs_core.prompts import check_instruction

    texts = (options.thought, options.again, options.again_model, options.truth)
    has_probes = options.probe or options.word or any(v is not None for v in texts)
    if has_probes and not options.out:
        raise CoPRSError(
            "Probes and comparisons write files, and there is no folder for them: add --out DIR."
        )
    if options.instruction is not None:
        check_instruction(options.instruction)
    if options.again is not None:
        check_instruction(options.again)
    if options.max_new_tokens is not None:
        check_max_new_tokens(options.max_new_tokens)


def _stream_to_terminal(engine: "Engine", photo: "Photo", options: Namespace) -> "Result":
    """Answer, printing the thought token by token."""
    from coprs_core.answer.updates import last_result

    def printed() -> "Iterator[Update]":
        for update in engine.stream(photo, options.instruction, options.max_new_tokens):
            if update.new and not options.json:
                print(update.new, end="", flush=True)
            yield update

    return last_result(printed())


def _run_many(options: Namespace, examples: "list[Example]", folder: Path | None) -> int:
    """Answer many photos, each into a folder under --out."""
    from tqdm import tqdm

    from coprs_core.answer.flags import FLAG_TEXTS
    from coprs_core.answer.verdict import LINK_TEXTS
    from coprs_core.batch import BatchOptions

    if folder is None:
        raise CoPRSError("Many photos need a folder for their answers: add --out DIR.")
    if options.truth or options.json:
        raise CoPRSError("--truth and --json are for one photo: leave them out.")
    probes = {"probe": tuple(options.probe), "word": tuple(options.word)}
    batch = pick_fields(BatchOptions, options, **probes)
    failed = 0
    if options.ray:
        answered = _run_on_ray(options, examples, batch, folder)
    else:
        answered = _run_locally(options, examples, batch, folder)
    with tqdm(answered, total=len(examples), unit="photo", file=sys.stderr) as bar:
        for one in bar:
            if one.problem:
                failed += 1
                bar.write(f"{one.name}: {one.problem}", file=sys.stderr)
            elif one.outcome:
                flag_texts = FLAG_TEXTS | {"unfamiliar": LINK_TEXTS["familiar_broken"]}
                warnings = " ".join(flag_texts[name] for name in one.photo_flags)
                line = f"{one.outcome}. {warnings}" if warnings else one.outcome
                bar.write(f"{one.name}: {line}", file=sys.stdout)
    if failed:
        line = f"{failed} of {len(examples)} photos failed; the others are in {folder}"
        print(line, file=sys.stderr)
    return EXIT_SOME_FAILED if failed else 0


def _run_locally(
    options: Namespace, examples: "list[Example]", batch: "BatchOptions", folder: Path
) -> "Iterator[BatchOutcome]":
    """Answer many photos in this process."""
    from coprs_core.batch import segment_photos

    lock, load_other = Lock(), cache(lambda: _load_engine(options, options.again_model))

    def other() -> "Engine":
        with lock:  # two writers may ask for it at once
            return load_other()

    return segment_photos(
        examples,
        batch,
        folder,
        cache(lambda: _load_engine(options)),
        lambda engine, photo, result: _run_probes(options, engine, other, photo, result),
        options.at_once,
    )


def _run_on_ray(
    options: Namespace, examples: "list[Example]", batch: "BatchOptions", folder: Path
) -> "Iterator[BatchOutcome]":
    """Answer many photos on a Ray cluster."""
    from coprs_core.cluster.ray_job import Cluster, segment_on_ray

    if batch.probe or batch.word or any((batch.thought, batch.again, batch.again_model)):
        raise CoPRSError("Probes are not asked on a cluster: leave them out, or leave out --ray.")
    cluster = Cluster(options.ray, options.ray_actors, options.ray_gpus, options.ray_cpus)
    notify = partial(print, file=sys.stderr)
    loading = parse_load_options(options)
    return segment_on_ray(examples, batch, folder, loading, cluster, options.at_once, notify)


def _run_probes(
    options: Namespace,
    engine: "Engine",
    load_other_engine: "Callable[[], Engine]",
    photo: "Photo",
    result: "Result",
    truth: "np.ndarray | None" = None,
) -> "Iterator[Finding]":
    """Run the probes that `options` ask for, one after the other; `load_other_engine` loads
    --again-model."""
    from coprs_core.probes import again, load_probe, thought, words
    from coprs_core.probes import truth as truth_probe
    from coprs_core.probes.finding import InapplicableProbe, NotApplicable

    for name in options.probe:
        try:
            yield load_probe(name).run(engine, photo, result)
        except NotApplicable as problem:  # no reason to give up the other files
            yield InapplicableProbe(problem.stem, str(problem))
    for word in options.word:
        yield words.focus_of_word(engine, photo, result, word)
    if options.thought is not None:
        yield thought.run(engine, photo, result, options.thought)
    if options.again is not None or options.again_model is not None:
        again_engine = engine if options.again_model is None else load_other_engine()
        yield again.run(again_engine, photo, result, options.again, options.max_new_tokens)
    if truth is not None:
        yield truth_probe.run(result, truth)


def _load_engine(options: Namespace, model: str | None = None) -> "Engine":
    from coprs_core.answer.engine import Engine
    from coprs_core.checkpoints.load import load_checkpoint

    name = options.model if model is None else model
    return Engine(load_checkpoint(name, parse_load_options(options)))


def summarize(result: "Result", truth: "np.ndarray | None" = None, frame: str = "upright") -> str:
    """An answer in a few lines: outcome, how the thought put the question, the links of its chain,
    with the `truth` where that is known, IoU, warnings, what the masks fit where that is a
    question, times."""
    from coprs_core.answer.flags import FLAG_TEXTS, find_flags
    from coprs_core.answer.verdict import diagnose, restated_question
    from coprs_core.metrics import iou

    lines = [f"{result.outcome}. {result.reason}"]
    if quote := restated_question(result):
        lines.append(f"  It understood: “{quote}”")
    true_iou = None if truth is None else iou(result.mask, truth)
    links = diagnose(result, true_iou)
    lines += [
        f"  {_STATE_MARKS[x.state]} {x if x.text_key != 'true_open' else _TRUTH_UNKNOWN}"
        for x in links
    ]
    if result.mask.any():
        lines.append(f"IoU of prior and mask: {result.prior_iou:.2f} (how far they agree)")
    lines += [f"warning: {FLAG_TEXTS[name]}" for name in find_flags(result)]
    if result.is_seen_downscaled and result.seen_size:
        height, width = result.seen_size
        share = f"{result.seen_pixel_share:.0%} of the pixels"
        lines.append(f"the language model was shown {width}×{height}, {share}")
    if result.orientation not in (None, 1):
        lines.append(_FRAME_TEXTS[frame].format(orientation=result.orientation))
    times = (f"{stage} {seconds:.2f} s" for stage, seconds in result.seconds.items())
    return "\n".join([*lines, " · ".join(times)])
