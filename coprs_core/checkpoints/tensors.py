"""Tensors from files, strictly: every tensor has its place and every place its tensor; no code is
ever run."""

import pickle
import re
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from coprs_core.errors import CoPRSError, Phrase, first_line, truncate
from coprs_core.files import GIT_LFS_HINT, is_git_lfs_pointer
from coprs_core.machine import COPY_AGAIN_HINT, as_user_error
from coprs_core.model.decoder import FLOAT32_BUFFER, DecoderConfig, infer_decoder_config
from coprs_core.model.vision import VisionConfig, infer_vision_config
from coprs_core.storage import format_bytes, free_disk

SAM_ENCODER_PREFIX = "image_encoder."
SAM_DECODER_PREFIXES = ("prompt_encoder.", "mask_decoder.")
"""SAM's own names of its parts."""
# a vision tower has layers of the same names, which are never quantized
_LLM_LINEAR_WEIGHT = re.compile(r"(?<!visual\.)layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$")
_DTYPE_NAMES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
}


@dataclass(frozen=True, eq=False)
class LazyTensors:
    """Tensors by name, each made when it is asked for.

    Attributes:
        path: where they come from, for messages.
        shapes: name → (shape, dtype); costs nothing.
        get: name → tensor.
    """

    path: Path
    shapes: dict[str, tuple[torch.Size, torch.dtype]]
    get: Callable[[str], Tensor]


def as_lazy_tensors(
    path: Path, state: dict[str, Tensor], dtype: torch.dtype | None = None
) -> LazyTensors:
    """Tensors that are there already, each in `dtype` or as it is; SAM's positional matrix as it
    is, for places are told apart by it."""
    shapes = {
        k: (v.shape, v.dtype if dtype is None or k.endswith(FLOAT32_BUFFER) else dtype)
        for k, v in state.items()
    }
    return LazyTensors(path, shapes, lambda k: state[k].detach().to("cpu", shapes[k][1]))


def open_safetensors(files: list[Path]) -> LazyTensors:
    """The tensors of safetensors files, read lazily; raises `CoPRSError` where one is broken."""
    file_of: dict[str, Path] = {}
    shapes = {}
    for path in files:
        with _open_safetensors(path, Phrase("{path} is broken or cut short", path=path)) as file:
            for name in file.keys():
                view = file.get_slice(name)
                file_of[name] = path
                shape = torch.Size(view.get_shape())
                shapes[name] = shape, _DTYPE_NAMES[view.get_dtype()]

    def get(name: str) -> Tensor:
        with safe_open(file_of[name], framework="pt") as file:
            return file.get_tensor(name)

    return LazyTensors(files[0].parent, shapes, get)


@contextmanager
def _open_safetensors(path: Path, fault: Phrase | None = None) -> Generator[Any, None, None]:
    """A safetensors file; raises `CoPRSError` where it is broken."""
    broken = fault or Phrase("{path} is broken", path=path)
    with (
        as_user_error(broken, broken_file_hint(path), path),
        safe_open(path, framework="pt") as file,
    ):
        yield file


def broken_file_hint(path: Path) -> Phrase:
    """What helps where a file is broken, for the end of a sentence: one that was downloaded is
    downloaded again once it is gone. Links of the cache point to where the bytes are."""
    real_path = path.resolve()
    is_downloaded = Path(constants.HF_HUB_CACHE).resolve() in real_path.parents
    if not is_downloaded:
        return COPY_AGAIN_HINT
    return Phrase("delete {path}, and it is downloaded again", path=real_path)


def save_tensors(state: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; raises `CoPRSError` where there is no room for it."""
    with write_errors_as_user_error(path):
        save_file(state, path, metadata={"format": "pt"})
    inherit_folder_mode(path)


@contextmanager
def write_errors_as_user_error(path: Path) -> Generator[None, None, None]:
    """Where weights cannot be written inside, a `CoPRSError` says so: the libraries' own errors are
    none of the system's."""
    try:
        yield
    except (SafetensorError, RuntimeError) as problem:
        signs = ("error while serializing", "pytorchstreamwriter", "inline_container")
        if not any(sign in str(problem).lower() for sign in signs):
            raise
        raise CoPRSError(
            "{path} could not be written ({reason}), for {free} are free on that disk: make "
            "room and start the same command again.",
            path=path,
            reason=first_line(problem),
            free=format_bytes(free_disk(path)),
        ) from problem


def inherit_folder_mode(path: Path) -> None:
    """Whoever may read the folder may read this file; the library writes for its own user alone."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def count_parameters(path: Path) -> tuple[int, int]:
    """How many weights a safetensors file holds, from its header alone.

    Returns:
        those of the language model's linear layers, and all others.
    """
    if not path.is_file():
        raise CoPRSError(
            "The checkpoint has no file {path}: copy it again from its source.", path=path
        )
    with _open_safetensors(path) as file:
        sizes = {k: torch.Size(file.get_slice(k).get_shape()).numel() for k in file.keys()}
    linear = sum(n for k, n in sizes.items() if _LLM_LINEAR_WEIGHT.search(k) and "vision" not in k)
    return linear, sum(sizes.values()) - linear


def load_module(module: nn.Module, path: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Put the tensors of a safetensors file into a module; see `load_state`."""
    with _open_safetensors(path) as file:
        state = {k: file.get_tensor(k) for k in file.keys()}
        load_state(module, state, path, device, dtype)


def load_state(
    module: nn.Module,
    state: dict[str, Tensor],
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Put tensors into a module of the same names, strictly, at the given precision.

    SAM's positional matrix stays float32.
    """
    check_tensors(module, state, path)
    for name in list(state):
        keeps = name.endswith(FLOAT32_BUFFER)
        state[name] = state[name].to(device, torch.float32 if keeps else dtype)
    module.load_state_dict(state, strict=True, assign=True)


def load_sam_modules(
    model: nn.Module, state: dict[str, Tensor], path: Path, device: torch.device, dtype: torch.dtype
) -> None:
    """Put a SAM file's tensors into a model's `image_encoder` and `decoder`."""
    load_state(
        model.get_submodule("image_encoder"), sam_encoder_tensors(state), path, device, dtype
    )
    load_state(model.get_submodule("decoder"), sam_decoder_tensors(state), path, device, dtype)


def check_tensors(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Raises `CoPRSError` naming tensors that are missing, not known, or of another shape."""
    expected = {k: v.shape for k, v in module.state_dict().items()}
    check_shapes(path, expected, {k: v.shape for k, v in state.items()})


def check_shapes(path: Path, expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> None:
    """Raises `CoPRSError` where the tensors found (name → shape) are not those expected."""
    wrong = [
        f"{k} is {list(found[k])} and {list(shape)} was expected"
        for k, shape in expected.items()
        if k in found and found[k] != shape
    ]
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    raise_on_mismatch(path, sorted(missing), sorted(unexpected), wrong)


def raise_on_mismatch(
    path: Path, missing: list[str], unexpected: list[str], wrong: list[str]
) -> None:
    """Raises `CoPRSError` naming the first few tensors of the first kind of mismatch there is."""
    for what, names in (
        (Phrase("lacks"), missing),
        (Phrase("has unexpected tensors:"), unexpected),
        (Phrase("has a wrong size:"), wrong),
    ):
        if names:
            more = Phrase(" and {count} more", count=len(names) - 3) if names[3:] else Phrase("")
            shown = ", ".join(truncate(name) for name in names[:3])
            raise CoPRSError(
                "{path} {what} {shown}{more}: it is not of this model; take all files of a model "
                "from one source.",
                path=path,
                what=what,
                shown=shown,
                more=more,
            )


# --- torch's own files


def read_sam_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a SAM .pth file, read lazily; raises `CoPRSError` where it is something
    else."""
    return read_torch_file(path, Phrase("a SAM file (.pth)"))


def infer_sam_configs(state: dict[str, Tensor], path: Path) -> tuple[VisionConfig, DecoderConfig]:
    """The sizes of a SAM file's image encoder and decoder, read off its tensors."""
    try:
        return infer_vision_config(sam_encoder_tensors(state)), infer_decoder_config(state)
    except (KeyError, ValueError, IndexError) as problem:
        raise CoPRSError(
            "{path} is not a SAM (ViT-B, L or H) file; it lacks {reason}: give one of "
            "segment_anything's published files.",
            path=path,
            reason=problem,
        ) from problem


def sam_encoder_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's tensors of a SAM file, without their prefix."""
    named = ((k, v) for k, v in state.items() if k.startswith(SAM_ENCODER_PREFIX))
    return {k.removeprefix(SAM_ENCODER_PREFIX): v for k, v in named}


def sam_decoder_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The prompt encoder's and mask decoder's tensors of a SAM file."""
    return {k: v for k, v in state.items() if k.startswith(SAM_DECODER_PREFIXES)}


_NO_TORCH_FILE = Phrase("is not a torch file")


def _unreadable_error(path: Path, fault: Phrase, expected: str, hint: Phrase) -> CoPRSError:
    return CoPRSError(
        "{path} {what}: {expected} was expected; {hint}.",
        path=path,
        what=fault,
        expected=expected,
        hint=hint,
    )


def read_torch_file(path: Path, expected: str) -> dict[str, Tensor]:
    """A torch file that holds a dict of tensors, read with weights_only: no code in it is run.

    Raises:
        CoPRSError: what is wrong with the file; `expected` says what it should have been.
    """
    try:
        is_zip = zipfile.is_zipfile(path)  # files of before torch 1.6 are not, and cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except FileNotFoundError as problem:
        raise CoPRSError(
            "There is no file {path}: {expected} was expected there.", path=path, expected=expected
        ) from problem
    except pickle.UnpicklingError as problem:
        is_unsafe = "GLOBAL" in str(problem) or "Unsupported" in str(problem)
        fault = Phrase("holds code, which is never run") if is_unsafe else _NO_TORCH_FILE
        trusted = Phrase("get it again from a source that you trust")
        hint = GIT_LFS_HINT if is_git_lfs_pointer(path) else trusted
        raise _unreadable_error(path, fault, expected, hint) from problem
    except (
        RuntimeError,
        OSError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ) as problem:
        with open(path, "rb") as file:
            was_zip = file.read(2) == b"PK"
        broken = Phrase("is broken or cut short ({reason})", reason=first_line(problem))
        fault = broken if was_zip else _NO_TORCH_FILE
        hint = GIT_LFS_HINT if is_git_lfs_pointer(path) else Phrase("copy it again")
        raise _unreadable_error(path, fault, expected, hint) from problem
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CoPRSError(
            "{path} holds no table of tensors: {expected} was expected.",
            path=path,
            expected=expected,
        )
    return state
