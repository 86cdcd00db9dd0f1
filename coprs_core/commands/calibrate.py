"""`calibrate`: find out which attention heads of a model tell a place."""

from argparse import ArgumentParser, Namespace

from coprs_core.commands.options import add_model_options, parse_load_options, positive_int

SUMMARY = "find out which attention heads of a model tell a place"
DESCRIPTION = """\
Ask a model about drawn scenes whose truth is known, and keep those of its attention
heads that look at the thing when it points. They are kept beside the cache of Hugging
Face (HF_HOME), and used from then on: for the prior of a model that writes coordinates,
and for the probes of attention. Without it every answer chooses its own heads.

It can be stopped and goes on where it was.

examples:
  coprs calibrate --model qwen3-vl-2b
  coprs calibrate --model auto --scenes 120
"""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--scenes",
        type=positive_int,
        default=60,
        metavar="N",
        help="how many are asked about (default 60)",
    )
    add_model_options(parser)


def run(options: Namespace) -> int:
    from tqdm import tqdm

    from coprs_core.answer.engine import Engine
    from coprs_core.calibrate import calibrate
    from coprs_core.checkpoints.load import load_checkpoint

    engine = Engine(load_checkpoint(options.model, parse_load_options(options)))
    with tqdm(total=options.scenes, unit="scene") as bar:
        for step in calibrate(engine, options.scenes):
            if isinstance(step, int):
                bar.update(step - bar.n)
                continue
            bar.close()
            print(
                f"{len(step.heads)} heads of {engine.name} look at the thing in {step.hits:.0%} of "
                f"{step.answers} answers, by which they were chosen; those that each answer "
                f"chooses for itself in {step.own_hits:.0%}.\nwritten: {step.path}"
            )
    return 0
