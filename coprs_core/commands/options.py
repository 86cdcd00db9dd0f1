"""Options that several commands share."""

import argparse
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from coprs_core.checkpoints.options import DETAIL_LEVELS, QUANTIZATIONS, SAM_NAMES, LoadOptions
from coprs_core.errors import CoPRSError
from coprs_core.files import read_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
DEVICE_HELP = "auto, cuda, cuda:1, mps or cpu (default auto)"


def disable_telemetry() -> None:
    """Keep TRL from reporting every start to its makers; call it before huggingface_hub, which
    reads the variable, is first imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@contextmanager
def missing_libraries_as_user_error() -> Generator[None, None, None]:
    """Wrap imports that joint training needs: a library that is not installed is a `CoPRSError`."""
    try:
        yield
    except ModuleNotFoundError as problem:
        raise CoPRSError(
            f"Joint training needs {problem.name}, which is not installed: "
            'pip install -e ".[train]" in the folder of CoPRS.'
        ) from problem


def add_model_options(parser: ArgumentParser) -> None:
    """Add the options that say which model is loaded, and how."""
    parser.add_argument(
        "--model",
        default="mini",
        metavar="NAME|FOLDER|HUB_ID",
        help="a name of `models`, auto (the best for photos that fits this machine), a checkpoint "
        "folder, a Hugging Face id, or openai:NAME@http://host:port/v1 for a model on another "
        "machine, with its key in COPRS_API_KEY (default mini)",
    )
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    parser.add_argument(
        "--dtype",
        default="auto",
        help="auto, bf16, fp16 or fp32 (auto: fp32 for under 1 GB of weights on a CPU, else bf16)",
    )
    parser.add_argument(
        "--sam",
        default="auto",
        metavar="NAME|FILE|FOLDER",
        help=f"auto, {', '.join(SAM_NAMES)}, a file or a folder, for models that write coordinates "
        "(default auto: sam2.1-tiny on a CPU, sam2.1-large on a GPU)",
    )
    parser.add_argument(
        "--detail",
        default="auto",
        help=f"auto, {', '.join(DETAIL_LEVELS)}: how closely a model that writes coordinates sees "
        "the photo (default auto: low on a CPU, normal on a GPU)",
    )
    parser.add_argument(
        "--quantize",
        dest="quantization",
        default="auto",
        help="auto, none, nf4 or int8: the language model's linear layers (default auto: on a CPU "
        "from 1 GB of weights on nf4, or int8 where it has no instructions for bfloat16)",
    )


def parse_load_options(options: Namespace) -> LoadOptions:
    """The `LoadOptions` of a parsed command line."""
    return pick_fields(LoadOptions, options)


def pick_fields(kind: type[T], options: Namespace, **changes: Any) -> T:
    """A dataclass whose fields are options of a parsed command line, or `changes` of them."""
    values = vars(options) | changes
    return kind(**{field.name: values[field.name] for field in fields(kind)})


def add_frame_option(parser: ArgumentParser) -> None:
    """Add the option that says which pixels the written masks fit."""
    parser.add_argument(
        "--stored-pixels",
        action="store_true",
        help="write masks, priors and cut-outs for the file's pixels as they are stored, before "
        "the turn that EXIF asks for (default: for the photo as it is shown)",
    )


def parse_frame(options: Namespace) -> str:
    """The frame of the masks that are written, one of `orientation.FRAMES`."""
    from coprs_core.photos.orientation import STORED, UPRIGHT

    return STORED if options.stored_pixels else UPRIGHT


def add_checkpoint_options(parser: ArgumentParser, is_sam_needed: bool = True) -> None:
    """Add the options that say what goes into a new checkpoint folder."""
    parser.add_argument(
        "--sam",
        required=is_sam_needed,
        metavar="NAME|FILE",
        help="vit_b, vit_l, vit_h or a .pth file",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--prompt",
        type=Path,
        metavar="FILE",
        help="the prompt template, with {image} and {instruction}",
    )
    parser.add_argument(
        "--dtype", default="bf16", help="bf16, fp16 or fp32, of the large parts (default bf16)"
    )


def read_prompt(file: Path | None) -> str | None:
    """The prompt template in a file; None where none is named."""
    if file is None:
        return None
    try:
        return read_text(file)
    except (OSError, CoPRSError) as problem:
        raise CoPRSError(
            f"The prompt template {str(file)!r} cannot be read ({problem}): give a text file."
        ) from problem


def process_device(device: str) -> str:
    """The device of this process: a GPU of its own where several were started and none is named."""
    from coprs_core.machine import rank_and_world_size

    if device != "auto" or rank_and_world_size()[1] == 1:
        return device
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else device


def add_listing_options(parser: ArgumentParser) -> None:
    """Add the options that say how listed models would be loaded."""
    parser.add_argument(
        "--quantize",
        dest="quantization",
        default="auto",
        choices=("auto", *QUANTIZATIONS),
        help="as it would be loaded",
    )
    parser.add_argument(
        "--sam", default="auto", choices=("auto", *SAM_NAMES), help="as it would be loaded"
    )


def non_negative_int(text: str, at_least: int = 0) -> int:
    """Parse a whole number of at least 0, as argparse's `type`."""
    value = int(text)
    if value < at_least:
        raise argparse.ArgumentTypeError(f"must be at least {at_least}")
    return value


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1, as argparse's `type`."""
    return non_negative_int(text, at_least=1)
