"""`train`: train the miniature from scratch, or resume a run."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from coprs_core.commands.options import DEVICE_HELP, count, positive_count

SUMMARY = "train the miniature from scratch"
PAGE = """\
Train the miniature from scratch, on scenes drawn as it goes: the vision tower, the
image encoder with prior and decoder, the language model, then all of them jointly.
Sizes and stages stand in coprs_core/training/mini/recipe.py. A run that was stopped
goes on where it left off; the finished checkpoint is OUT/checkpoint.

examples:
  python -m coprs_core train mini --out runs/mini
  python -m coprs_core train mini --out runs/mini --device cuda --workers 8
"""


def add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("recipe", choices=("mini",), help="the recipe: mini")
    add(
        "--out",
        type=Path,
        default=Path("runs/mini"),
        metavar="DIR",
        help="checkpoints and logs (default runs/mini)",
    )
    add(
        "--stage",
        metavar="NAME",
        help="this stage of the recipe alone (default: all that are left)",
    )
    add("--device", default="auto", help=DEVICE_HELP)
    add(
        "--workers",
        type=count,
        default=0,
        metavar="N",
        help="processes that draw scenes (default 0: the run itself)",
    )
    add("--threads", type=positive_count, metavar="N", help="CPU threads (default: all)")


def run(options: Namespace) -> int:
    from coprs_core.archive import writable_folder
    from coprs_core.training.mini import recipe
    from coprs_core.training.mini.run import train_miniature

    train_miniature(
        recipe.MINI,
        writable_folder(options.out),
        options.device,
        options.workers,
        options.stage,
        options.threads,
    )
    return 0
