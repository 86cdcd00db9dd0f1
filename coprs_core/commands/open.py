"""`open`: show a saved answer, without any model."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

SUMMARY = "show a saved answer, without any model"
PAGE = """\
Show an answer that `segment --out` or the page's "Take away" saved: a folder or a zip.
Needs no model. --out writes its files anew; the app opens the zip too.

example:
  python -m coprs_core open answer.zip

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
    add("--json", action="store_true", help="print the result as JSON and nothing else")


def run(options: Namespace) -> int:
    from coprs_core.archive import open_answer, save_answer, writable_folder
    from coprs_core.commands.segment import EXIT_CODES, summary

    saved = open_answer(options.answer)
    result = saved.result
    if options.json:
        print(result.to_json())
    else:
        print(f"“{result.instruction}”\n\n{result.reasoning}\n\n{summary(result)}")
    if options.out:
        written = save_answer(writable_folder(options.out), saved.photo, result)
        if not options.json:
            print("written: " + ", ".join(str(p) for p in written))
    return EXIT_CODES[result.outcome]
