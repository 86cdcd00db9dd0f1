"""`prepare`: the starting point of training, from a published model and SAM."""

from argparse import ArgumentParser, Namespace

from coprs_core.commands.options import add_checkpoint_options, read_prompt

SUMMARY = "make the starting point of training from a published model"
DESCRIPTION = """\
Make the starting point of training: a published model with the focus token added,
SAM's image encoder, prompt encoder and mask decoder, and a fresh query head.

example:
  coprs prepare Qwen/Qwen2.5-VL-3B-Instruct --sam vit_h --out start-3b
"""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "base",
        metavar="MODEL",
        help="a Hugging Face id or folder of Qwen2.5-VL or Qwen3-VL; others cannot be trained",
    )
    add_checkpoint_options(parser)


def run(options: Namespace) -> int:
    from coprs_core.checkpoints.convert import prepare_for_training

    prompt = read_prompt(options.prompt)
    prepare_for_training(options.base, options.sam, options.out, prompt, options.dtype)
    print(f"written: {options.out}")
    return 0
