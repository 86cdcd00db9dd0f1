"""How large a language model's folder may say that things are, checked before anything is built."""

from pathlib import Path
from typing import Any

from coprs_core.checkpoints.tensors import count_weights
from coprs_core.errors import CoPRSError, Phrase, truncated
from coprs_core.model.backends.mllm import Mllm

_MOST = {
    "num_hidden_layers": 512,
    "depth": 512,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "num_heads": 1024,
    "head_dim": 4096,
    "linear_num_key_heads": 1024,
    "linear_num_value_heads": 1024,
    "linear_key_head_dim": 4096,
    "linear_value_head_dim": 4096,
    "linear_conv_kernel_dim": 256,
    "hidden_size": 65536,
    "out_hidden_size": 65536,
    "embed_dim": 65536,
    "projection_dim": 65536,
    "intermediate_size": 2**20,
    "vocab_size": 10_000_000,
    "max_position_embeddings": 2**28,
    "num_position_embeddings": 2**20,
    "image_size": 4096,
    "window_size": 4096,
    "patch_size": 256,
    "temporal_patch_size": 16,
    "spatial_merge_size": 16,
    "in_channels": 16,
    "num_channels": 16,
}
"""Largest value of an entry of config.json, wherever it stands; the least is 1."""
_MOST_IN_LIST = 4096
_MOST_PIXELS, _MOST_SIDE = 2**20, 4096
"""Largest area or side that an image processor may stretch a small photo to."""
_SAME = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
"""Entries of an image processor, and of the vision config, that must be equal."""


def check_numbers(values: Any, path: Path) -> None:
    """Raises `CoPRSError` where config.json is no table, or an entry is too large or small to build
    or names code."""
    if not isinstance(values, dict):
        raise CoPRSError("{path} holds no entries: copy it again from its source.", path=path)
    for name, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        expected = None
        if isinstance(value, dict):
            check_numbers(value, path)
        if name in _MOST and is_number and not 1 <= value <= _MOST[name]:
            expected = Phrase("a number from 1 to {most:,}", most=_MOST[name])
        elif isinstance(value, list) and len(value) > _MOST_IN_LIST:
            expected = Phrase("a list of at most {most:,}", most=_MOST_IN_LIST)
        elif name.endswith("attn_implementation") and "/" in str(value):
            expected = Phrase("a name without “/”, which would be code to download,")
        if expected:
            raise CoPRSError(
                "{path}: {name} is {value} and {expected} was expected: correct it, or copy the "
                "file again from its source.",
                path=path,
                name=truncated(name, 40),
                value=truncated(value, 40),
                expected=expected,
            )


def check_size(empty: Mllm, files: list[Path], is_tied: bool, folder: Path) -> None:
    """Raises `CoPRSError` where a config describes far more weights than the files hold: those
    missing would be made up, and take the memory."""
    described = sum(
        p.numel()
        for name, p in empty.named_parameters()
        if not (is_tied and name == "lm_head.weight")
    )
    held = sum(sum(count_weights(path)) for path in files)
    packed = 8 if getattr(empty.config, "quantization_config", None) else 1
    if described > 2 * held * packed:
        raise CoPRSError(
            "{path} describes a model of {described:,} weights and the files hold {held:,}: "
            "copy the folder again from its source.",
            path=folder / "config.json",
            described=described,
            held=held,
        )


def check_image_processor(image_processor: Any, vision: Any, folder: Path) -> None:
    """Raises `CoPRSError` where an image processor cuts a photo otherwise than the model reads it,
    or would make it huge."""
    takes_areas = "image_grid_thw" in type(image_processor).model_input_names
    if takes_areas != hasattr(vision, "spatial_merge_size"):
        raise CoPRSError(
            "The image processor in {folder} is a {kind}, which its model cannot use: the "
            "two are of different models.",
            folder=folder,
            kind=type(image_processor).__name__,
        )
    for name, name_in_model in _SAME.items() if takes_areas else ():
        found, expected = getattr(image_processor, name), getattr(vision, name_in_model)
        if found != expected:
            raise CoPRSError(
                "The image processor in {folder} has {name} {found} and its model {expected}: "
                "the two are of different models.",
                folder=folder,
                name=name,
                found=truncated(found, 40),
                expected=expected,
            )
    for group in ("size", "crop_size", "pad_size"):
        for name, value in dict(getattr(image_processor, group, None) or {}).items():
            most = _MOST_PIXELS if takes_areas else _MOST_SIDE
            if takes_areas and name == "longest_edge":
                most = 2**30  # an upper bound stretches nothing
            if value is not None and not (type(value) is int and 1 <= value <= most):
                raise CoPRSError(
                    "The image processor in {folder} has {group}.{name} {value} and a whole number "
                    "from 1 to {most:,} was expected: correct it, or copy the file again from its "
                    "source.",
                    folder=folder,
                    group=group,
                    name=truncated(name, 40),
                    value=truncated(value, 40),
                    most=most,
                )
