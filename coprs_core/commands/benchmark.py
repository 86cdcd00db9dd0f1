"""`benchmark`: time one answer, with random weights at true size or with a checkpoint."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from coprs_core.commands.options import add_model_options, load_options, positive_count

SUMMARY = "time one answer and report its memory"
PAGE = """\
Time one answer about a 1024×768 picture and report its memory. With --random-weights a
checkpoint of that true size is written first (9 GB for 3b, 18 GB for 7b), loaded as
any other, and deleted unless --folder keeps it.

examples:
  python -m coprs_core benchmark --random-weights 3b --dtype bf16
  python -m coprs_core benchmark --random-weights 7b --device cuda --quantize nf4 --folder /tmp/7b
  python -m coprs_core benchmark --model mini
"""


def add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--random-weights", choices=("3b", "7b"), help="true size, random weights")
    add(
        "--folder",
        type=Path,
        metavar="DIR",
        help="keep the random checkpoint here, or use the one kept",
    )
    add(
        "--tokens",
        type=positive_count,
        default=8,
        metavar="N",
        help="tokens to write before the focus token",
    )
    add("--json", action="store_true", help="print the numbers as JSON; bytes and seconds")
    add_model_options(parser)


def run(options: Namespace) -> int:
    from coprs_core.benchmark import benchmark, measure, table

    chosen = load_options(options)
    if options.random_weights:
        measured = benchmark(options.random_weights, chosen, options.tokens, options.folder)
    else:
        measured = measure(options.model, options.model, chosen, options.tokens)
    print(json.dumps(asdict(measured), indent=1) if options.json else table(measured))
    return 0
