"""The only writer of checkpoint folders. What one holds stands at `sources.CoPRSSource`."""

import copy
import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards

from coprs_core.checkpoints.hugging_face import has_tied_embeddings
from coprs_core.checkpoints.sources import CHECKPOINT_PARTS
from coprs_core.checkpoints.tensors import LazyTensors, as_lazy_tensors, save_tensors
from coprs_core.errors import CoPRSError
from coprs_core.model.backends.mllm import Mllm
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.storage import format_bytes, free_disk

TIED_OUTPUT_LAYER = "lm_head.weight"
"""Left out of a file where it is one with the embeddings."""


def save_checkpoint(
    folder: Path, model: CoPRS, processor: Any, dtype: torch.dtype | None = None
) -> None:
    """Write a model and its processor (tokenizer included), in `dtype` or as they are."""
    language_folder = folder / "mllm"
    language_folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.mllm.config)
    config.architectures = [type(model.mllm).__name__]
    config.dtype = dtype or model.mllm.dtype
    config.save_pretrained(language_folder)
    model.mllm.generation_config.save_pretrained(language_folder)
    processor.save_pretrained(language_folder)
    parts = {
        part: as_lazy_tensors(folder, model.get_submodule(part).state_dict(), dtype)
        for part in CHECKPOINT_PARTS
    }
    write_checkpoint(
        folder, model.config, as_lazy_tensors(folder, language_tensors(model.mllm), dtype), parts
    )


def language_tensors(mllm: Mllm) -> dict[str, torch.Tensor]:
    """The tensors of a Hugging Face model that its file holds."""
    state = dict(mllm.state_dict())
    if has_tied_embeddings(mllm.config):
        state.pop(TIED_OUTPUT_LAYER, None)
    return state


def write_checkpoint(
    folder: Path, config: CoPRSConfig, language: LazyTensors, parts: Mapping[str, LazyTensors]
) -> None:
    """Write weights and coprs.json; the other files of the language model are in folder/mllm
    already.

    Args:
        folder: the checkpoint folder.
        config: becomes coprs.json.
        language: the language model's tensors, in files of at most 2 GB; one is held at a time.
        parts: the tensors of each of `CHECKPOINT_PARTS`.
    """
    write_language_model(folder / "mllm", language)
    for part in CHECKPOINT_PARTS:
        _save_tensors(folder / f"{part}.safetensors", parts[part], list(parts[part].shapes))
    _write_json(folder / "coprs.json", config.to_dict())


def write_language_model(folder: Path, language: LazyTensors) -> None:
    """Write a language model's tensors into a Hugging Face folder, in files of at most 2 GB; one is
    held at a time."""
    plan = split_torch_state_dict_into_shards(
        {k: torch.empty(s, dtype=d, device="meta") for k, (s, d) in language.shapes.items()},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size="2GB",
    )
    for file, names in plan.filename_to_tensors.items():
        _save_tensors(folder / file, language, names)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_json(folder / "model.safetensors.index.json", index)


def _save_tensors(path: Path, tensors: LazyTensors, names: list[str]) -> None:
    state = {k: tensors.get(k).clone(memory_format=torch.contiguous_format) for k in names}
    save_tensors(state, path)


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def atomic_output_folder(out: Path, size: int) -> Generator[Path, None, None]:
    """A new folder that takes its place when the block ends well and leaves nothing when it does
    not.

    Raises `CoPRSError` where the place is taken, or has fewer than `size` bytes free.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CoPRSError(f"{out} exists already: choose a new --out.")
    if size > free_disk(out):
        free = format_bytes(free_disk(out))
        raise CoPRSError(
            f"{out} needs {format_bytes(size)} and {free} are free: choose another disk."
        )
    out = out.absolute()
    temporary = out.with_name(out.name + ".part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as problem:
        reason = problem.strerror or problem
        raise CoPRSError(f"{out} cannot be written ({reason}): choose another --out.") from problem
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
