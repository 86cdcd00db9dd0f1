"""`convert`: the authors' training output, or adapters, become a checkpoint folder."""

from argparse import ArgumentParser, Namespace

from coprs_core.commands.options import add_checkpoint_options, read_prompt

SUMMARY = "turn the authors' training output, or adapters, into a checkpoint folder"
DESCRIPTION = """\
Turn the output of the authors' training (the …/actor folder, with llm_hf/ and
refseg_modules.pt, or FSDP shards model_world_size_W_rank_R.pt of any W) into a
checkpoint folder. Pickles are read for their tensors alone; every tensor is placed
or named; nothing is written unless all of it is right.

Or merge adapters (a folder or Hugging Face id with adapter_config.json) into the
checkpoint that they name.

examples:
  coprs convert step_500_ep_1/actor --sam sam_vit_h_4b8939.pth --out coprs-3b
  coprs convert runs/own/checkpoint --out coprs-own
"""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="ACTOR_FOLDER|ADAPTERS",
        help="holds llm_hf/ and refseg_modules.pt, or shards; or adapters",
    )
    add_checkpoint_options(parser, is_sam_needed=False)


def run(options: Namespace) -> int:
    from coprs_core.checkpoints.convert import convert_checkpoint, merge_adapters
    from coprs_core.errors import CoPRSError
    from coprs_core.storage import expand_home

    folder, prompt = expand_home(options.source), read_prompt(options.prompt)
    if options.sam:
        convert_checkpoint(folder, options.sam, options.out, prompt, options.dtype)
    elif (folder / "llm_hf").is_dir():
        raise CoPRSError("The authors' output does not hold SAM: name it with --sam.")
    elif prompt:
        raise CoPRSError("Adapters are merged with the prompt of their base: leave --prompt out.")
    else:
        merge_adapters(options.source, options.out, options.dtype)
    print(f"written: {options.out}; open it with: python app.py --model {options.out}")
    return 0
