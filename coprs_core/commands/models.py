"""`models`: what can be loaded by name, and whether it fits this machine."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from coprs_core.checkpoints.options import LoadOptions
from coprs_core.commands.options import DEVICE_HELP, add_listing_options

SUMMARY = "list what can be loaded, and whether it fits this machine"
DESCRIPTION = """\
List the models that can be loaded by name: what kind of prior they have, what they
download and need, their licence, and whether they fit this machine as it is now.

examples:
  coprs models
  coprs models --quantize nf4 --sam vit_b --json
"""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print the table as JSON; sizes in bytes"
    )
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    add_listing_options(parser)


def run(options: Namespace) -> int:
    from coprs_core.checkpoints.catalogue import format_table, list_models

    rows = list_models(
        LoadOptions(options.device, quantization=options.quantization, sam=options.sam)
    )
    print(json.dumps([asdict(r) for r in rows], indent=1) if options.json else format_table(rows))
    return 0
