"""`evaluate`: measure a checkpoint on a data set."""

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from coprs_core.commands.options import add_model_options, load_options, positive_count
from coprs_core.datasets import DATASETS

SUMMARY = "measure a model on a data set"
PAGE = """\
Answer the examples of a data set and print the scores: overall, by group and by
target size. gIoU is the mean IoU per example, where both empty counts 1 and a mask
where nothing fits counts 0.

example:
  python -m coprs_core evaluate --model mini --data scenes --split test --count 1000
"""


def add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        choices=DATASETS,
        default="scenes",
        help=f"what to answer: {', '.join(DATASETS)} (default scenes)",
    )
    add("--root", type=Path, metavar="DIR", help="the folder of a data set that lies on disk")
    add("--split", default="test", help="a split of the data set (default test)")
    add("--seed", type=int, default=0, metavar="S", help="number of the first example (default 0)")
    add(
        "--count",
        type=positive_count,
        default=1000,
        metavar="N",
        help="how many examples (default 1000)",
    )
    add("--json", action="store_true", help="print all scores, and every row, as JSON")
    add_model_options(parser)


def run(options: Namespace) -> int:
    from tqdm import tqdm

    from coprs_core.answer.engine import Engine
    from coprs_core.checkpoints.load import load_checkpoint
    from coprs_core.datasets import open_dataset
    from coprs_core.evaluate import evaluate, report, table

    dataset = open_dataset(options.data, options.root, options.split)
    engine = Engine(load_checkpoint(options.model, load_options(options)))
    rows = evaluate(engine, dataset.examples(options.seed, options.count))
    bar = tqdm(rows, total=options.count, unit="example", file=sys.stderr)
    scores = report(list(bar), dataset.groups)
    print(json.dumps(scores, indent=1) if options.json else table(scores))
    return 0
