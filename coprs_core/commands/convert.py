"""`convert`: the authors' training output becomes a checkpoint folder."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from coprs_core.commands.options import add_checkpoint_options, read_prompt

SUMMARY = "turn the authors' training output into a checkpoint folder"
PAGE = """\
Turn the output of the authors' training (the …/actor folder, with llm_hf/ and
refseg_modules.pt, or FSDP shards model_world_size_W_rank_R.pt of any W) into a
checkpoint folder. Pickles are read for their tensors alone; every tensor is placed
or named; nothing is written unless all of it is right.

example:
  python -m coprs_core convert step_500_ep_1/actor --sam sam_vit_h_4b8939.pth --out coprs-3b
"""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        metavar="ACTOR_FOLDER",
        help="holds llm_hf/ and refseg_modules.pt, or shards",
    )
    add_checkpoint_options(parser)


def run(options: Namespace) -> int:
    from coprs_core.checkpoints.convert import convert

    prompt = read_prompt(options.prompt)
    convert(options.folder, options.sam, options.out, prompt, options.dtype)
    print(f"written: {options.out}; open it with: python app.py --model {options.out}")
    return 0
