"""`benchmark`: time one answer, with random weights at true size or with a checkpoint."""

import argparse
import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from coprs_core.commands.options import add_model_options, parse_load_options, positive_int

SUMMARY = "time one answer and report its memory"
DESCRIPTION = """\
Time answers and report their memory. With --random-weights a model of that true size is
written first (9 GB for 3b, 18 GB for 7b, 4.4 GB for qwen3-vl-2b), loaded as any other, and
deleted unless --folder keeps it. 3b and 7b are CoPRS checkpoints, the others write
coordinates.

examples:
  coprs benchmark --random-weights qwen3-vl-2b --tokens 60 --picture 640x480
  coprs benchmark --random-weights 3b --dtype bf16 --quantize none
  coprs benchmark --random-weights 7b --device cuda --quantize nf4 --folder /tmp/7b
  coprs benchmark --model mini
"""


def add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--random-weights",
        metavar="SIZE",
        choices=("3b", "7b", "qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b"),
        help="3b, 7b, qwen3-vl-2b, qwen3-vl-4b or qwen3-vl-8b: true size, random weights",
    )
    add(
        "--folder",
        type=Path,
        metavar="DIR",
        help="keep the random checkpoint here, or use the one kept",
    )
    add(
        "--tokens",
        type=positive_int,
        default=8,
        metavar="N",
        help="tokens to write before the focus token or the box (default 8)",
    )
    add(
        "--picture",
        type=_parse_size,
        default=(1024, 768),
        metavar="WxH",
        help="size of the pictures, in pixels (default 1024x768)",
    )
    add("--json", action="store_true", help="print the numbers as JSON; bytes and seconds")
    add_model_options(parser)


def _parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    sides = [int(side) for side in (width, height) if side.isdecimal()]
    if len(sides) < 2 or not all(28 <= side <= 8192 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 640x480")
    return sides[0], sides[1]


def run(options: Namespace) -> int:
    from coprs_core.benchmark import benchmark_model, benchmark_random_model, format_result

    loading = parse_load_options(options)
    if options.random_weights:
        measured = benchmark_random_model(
            options.random_weights, loading, options.tokens, options.folder, options.picture
        )
    else:
        measured = benchmark_model(
            options.model, options.model, loading, options.tokens, options.picture
        )
    print(json.dumps(asdict(measured), indent=1) if options.json else format_result(measured))
    return 0
