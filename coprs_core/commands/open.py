"""`open`: show a saved answer, without any model."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from coprs_core.commands.options import add_frame_option, parse_frame

SUMMARY = "show a saved answer, without any model"
DESCRIPTION = """\
Show an answer that `segment --out` or the page's "Take away" saved: a folder or a zip.
Needs no model. --out writes its files anew, --replay the thought and its looks as a moving
picture; the app opens the zip too.

examples:
  coprs open answer.zip
  coprs open answer.zip --replay replay.webp
  coprs open answer.zip --out answer --full-size

exit codes:
  0 found · 3 nothing found · 4 unfinished · 2 no saved answer
"""


def add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "answer",
        type=Path,
        metavar="ZIP|FOLDER",
        help='what `segment --out` or "Take away" wrote',
    )
    add("--out", type=Path, metavar="DIR", help="write the answer's files into this folder")
    add(
        "--replay",
        type=Path,
        metavar="FILE",
        help="write the replay as .webp or .gif, where the answer was saved with its trace",
    )
    add(
        "--full-size",
        action="store_true",
        help="write the mask also at the size that the photo had before it was brought down to "
        "fewer pixels, as mask_full_size.png",
    )
    add_frame_option(parser)
    add("--json", action="store_true", help="print the result as JSON and nothing else")


def run(options: Namespace) -> int:
    from coprs_core.commands.segment import EXIT_CODES, summarize
    from coprs_core.errors import CoPRSError
    from coprs_core.export.archive import make_writable_folder, open_answer, save_answer
    from coprs_core.export.replay import save_replay

    if options.full_size and not options.out:
        raise CoPRSError("--full-size writes a file, and there is no folder for it: add --out DIR.")
    saved = open_answer(options.answer)
    result, trace, written = saved.result, saved.sentences, []
    frame = parse_frame(options)
    if options.replay and trace is None:
        raise CoPRSError(
            "This answer was saved without the trace of its thought, so there is nothing to "
            "replay: save it with `segment … --probe sentences --out DIR`, or on the page."
        )
    if options.json:
        print(result.to_json(frame))
    else:
        print(f"“{result.instruction}”\n\n{result.reasoning}\n\n{summarize(result, frame=frame)}")
        if trace:
            print(f"sentences: {trace.summary()}")
    if options.out:
        findings = [trace] if trace else []
        folder = make_writable_folder(options.out)
        written += save_answer(
            folder, saved.photo, result, findings, frame=frame, with_full_size=options.full_size
        )
    if options.replay and trace:
        written.append(save_replay(options.replay, saved.photo, result, trace))
    if written and not options.json:
        print("written: " + ", ".join(str(p) for p in written))
    return EXIT_CODES[result.outcome]
