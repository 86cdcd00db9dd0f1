"""`compare`: two runs of `evaluate` side by side."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

SUMMARY = "set two evaluations side by side"
DESCRIPTION = """\
Hold two runs of `evaluate` against each other, item by item: the difference of each
measure with its 95 % interval, and the p of a paired permutation test.

example:
  coprs compare runs/before runs/after
"""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="A", help="the --out of a run")
    parser.add_argument("second", type=Path, metavar="B", help="that of another on the same items")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write an HTML page, too")


def run(options: Namespace) -> int:
    from coprs_core.evaluation.compare import compare_runs

    comparison = compare_runs(options.first, options.second)
    print(comparison.to_text())
    if options.out:
        options.out.write_text(comparison.to_html(), encoding="utf-8", errors="backslashreplace")
        print(f"written: {options.out}")
    return 0
