"""`ablate`: the paper's tables, measured on the miniature."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from coprs_core.commands.options import (
    DEVICE_HELP,
    disable_telemetry,
    missing_libraries_as_user_error,
    non_negative_int,
    positive_int,
    process_device,
)

SUMMARY = "measure the paper's tables on the miniature"
DESCRIPTION = """\
Train variants of the method from one start with equal budgets, and measure them on the
same scenes:

objective      joint, only RL, only segmentation, imitation; and the start itself
mask share     0 and 1 of the reward, for 0.7
group          2 and 4 replies to a question, for 8
camp           focus token and prior (CoPRS), hidden state (LISA), coordinates in text
               (Seg-Zero): new heads on one language model and image encoder
image encoder  a smaller and a larger one, from nothing

A run that was stopped goes on; --arm chooses arms or tables. OUT/ablation.md and
ablation.png hold what is there. It needs more libraries: pip install -e ".[train]".

examples:
  coprs ablate --out runs/ablation
  coprs ablate --out runs/ablation --arm joint --arm camp --seeds 1
  coprs ablate --out runs/small --steps 2 --camp-steps 4 --scenes 20
"""


def add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/ablation"), metavar="DIR", help="where it all goes")
    add("--model", default="mini", metavar="NAME", help="the start (default mini)")
    add("--arm", action="append", default=[], metavar="NAME", help="an arm or a table; may repeat")
    add("--seeds", type=positive_int, default=2, metavar="N", help="at most (default 2)")
    add("--steps", type=positive_int, default=40, metavar="N", help="joint stage (default 40)")
    add("--camp-steps", type=positive_int, default=600, metavar="N", help="(default 600)")
    add("--scenes", type=positive_int, default=1000, metavar="N", help="(default 1000)")
    add(
        "--start",
        type=non_negative_int,
        default=300_000,
        metavar="N",
        help="first scene (default 300000)",
    )
    add("--at-once", type=positive_int, default=1, metavar="N", help="arms side by side")
    add("--device", default="auto", help=DEVICE_HELP)


def run(options: Namespace) -> int:
    disable_telemetry()

    from coprs_core.mini.ablation.arms import select_arms

    arms = select_arms(options.arm)
    with missing_libraries_as_user_error():
        from coprs_core.mini.ablation.run import Budget, run_ablation
    from coprs_core.mini.ablation.tables import build_tables, draw_figure, to_markdown

    budget = Budget(options.model, options.steps, options.camp_steps, options.scenes, options.start)
    device = process_device(options.device)
    measured = run_ablation(
        budget, arms, options.out, options.seeds, device, at_once=options.at_once
    )
    tables = build_tables(measured)
    text = to_markdown(tables, budget)
    (options.out / "ablation.md").write_text(text, encoding="utf-8")
    draw_figure(tables).savefig(options.out / "ablation.png", dpi=150)
    print(text, end="")
    print(f"written: {options.out / 'ablation.md'}, {options.out / 'ablation.png'}")
    return 0
