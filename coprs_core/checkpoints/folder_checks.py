"""What a Hugging Face folder may say, checked before anything is built; and what helps where
transformers cannot read it: to copy it again does only where a file came damaged."""

from collections.abc import Callable
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from coprs_core.checkpoints.tensors import count_parameters
from coprs_core.errors import CoPRSError, Phrase, truncate
from coprs_core.files import GIT_LFS_HINT, has_bom, is_git_lfs_pointer, without_hidden
from coprs_core.machine import COPY_AGAIN_HINT
from coprs_core.model.backends.mllm import Mllm
from coprs_core.parsing import parse_json

_MAX_VALUES = {
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
_MAX_LIST_LENGTH = 4096
_MAX_PIXELS, _MAX_SIDE = 2**20, 4096
"""Largest area or side that an image processor may stretch a small photo to."""
_EQUAL_ENTRIES = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
"""Entries of an image processor, and of the vision config, that must be equal."""


def check_config_values(values: Any, path: Path) -> None:
    """Raises `CoPRSError` where config.json is no table, or an entry is too large or small to build
    or names code."""
    if not isinstance(values, dict):
        raise CoPRSError("{path} holds no entries: copy it again from its source.", path=path)
    for name, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        expected = None
        if isinstance(value, dict):
            check_config_values(value, path)
        if name in _MAX_VALUES and is_number and not 1 <= value <= _MAX_VALUES[name]:
            expected = Phrase("a number from 1 to {most:,}", most=_MAX_VALUES[name])
        elif isinstance(value, list) and len(value) > _MAX_LIST_LENGTH:
            expected = Phrase("a list of at most {most:,}", most=_MAX_LIST_LENGTH)
        elif name.endswith("attn_implementation") and "/" in str(value):
            expected = Phrase("a name without “/”, which would be code to download,")
        if expected:
            raise CoPRSError(
                "{path}: {name} is {value} and {expected} was expected: correct it, or copy the "
                "file again from its source.",
                path=path,
                name=truncate(name, 40),
                value=truncate(value, 40),
                expected=expected,
            )


def check_weight_count(meta_mllm: Mllm, files: list[Path], is_tied: bool, folder: Path) -> None:
    """Raises `CoPRSError` where a config describes far more weights than the files hold: those
    missing would be made up, and take the memory."""
    described = sum(
        p.numel()
        for name, p in meta_mllm.named_parameters()
        if not (is_tied and name == "lm_head.weight")
    )
    stored = sum(sum(count_parameters(path)) for path in files)
    # at most eight 4-bit weights are packed into one number of a file
    max_packing = 8 if getattr(meta_mllm.config, "quantization_config", None) else 1
    if described > 2 * stored * max_packing:
        raise CoPRSError(
            "{path} describes a model of {described:,} weights and the files hold {held:,}: "
            "copy the folder again from its source.",
            path=folder / "config.json",
            described=described,
            held=stored,
        )


def check_image_processor(image_processor: Any, vision: Any, folder: Path) -> None:
    """Raises `CoPRSError` where an image processor cuts a photo otherwise than the model reads it,
    or would make it huge."""
    has_pixel_bounds = "image_grid_thw" in type(image_processor).model_input_names
    if has_pixel_bounds != hasattr(vision, "spatial_merge_size"):
        raise CoPRSError(
            "The image processor in {folder} is a {kind}, which its model cannot use: the "
            "two are of different models.",
            folder=folder,
            kind=type(image_processor).__name__,
        )
    for name, name_in_model in _EQUAL_ENTRIES.items() if has_pixel_bounds else ():
        found, expected = getattr(image_processor, name), getattr(vision, name_in_model)
        if found != expected:
            raise CoPRSError(
                "The image processor in {folder} has {name} {found} and its model {expected}: "
                "the two are of different models.",
                folder=folder,
                name=name,
                found=truncate(found, 40),
                expected=expected,
            )
    for group in ("size", "crop_size", "pad_size"):
        for name, value in dict(getattr(image_processor, group, None) or {}).items():
            max_value = _MAX_PIXELS if has_pixel_bounds else _MAX_SIDE
            if has_pixel_bounds and name == "longest_edge":
                max_value = 2**30  # an upper bound stretches nothing
            if value is not None and not (type(value) is int and 1 <= value <= max_value):
                raise CoPRSError(
                    "The image processor in {folder} has {group}.{name} {value} and a whole number "
                    "from 1 to {most:,} was expected: correct it, or copy the file again from its "
                    "source.",
                    folder=folder,
                    group=group,
                    name=truncate(name, 40),
                    value=truncate(value, 40),
                    most=max_value,
                )


# --- what helps

UNSUPPORTED_QUANTIZATIONS = {"awq": "gptqmodel (once autoawq)", "gptq": "gptqmodel"}
"""Ways of quantizing, by `quant_method`, and the libraries that their weights need."""
_USE_UNQUANTIZED_HINT = Phrase(
    "take the same model with unquantized weights, which --quantize nf4 or int8 makes small here"
)
_CONFIG_FILES = (
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
)
_CLASSES_BY_MODEL_TYPE = {
    "qwen2_5_vl": ("Qwen2VLImageProcessor", "Qwen2_5_VLProcessor", "Qwen2Tokenizer"),
    "qwen3_vl": ("Qwen2VLImageProcessor", "Qwen3VLProcessor", "Qwen2Tokenizer"),
    "qwen3_5": ("Qwen2VLImageProcessor", "Qwen3VLProcessor", "Qwen3_5Tokenizer"),
    "llava": ("CLIPImageProcessor", "LlavaProcessor", "LlamaTokenizer"),
    "internvl": ("GotOcr2ImageProcessor", "InternVLProcessor", "Qwen2Tokenizer"),
}
_CLASS_ENTRIES = ("image_processor_type", "processor_class", "tokenizer_class")
"""Entries that name a class of transformers; of each type of model the right ones, in their
order."""


def check_quantization_method(values: dict, path: Path) -> None:
    """Raises `CoPRSError` where a config.json is of weights that are quantized in a way that is not
    supported."""
    method = _quantization_method(values)
    if method in UNSUPPORTED_QUANTIZATIONS:
        raise CoPRSError(
            "{path} says that the weights are quantized by {method}: that needs the library "
            "{library}, which is not supported; {hint}.",
            path=path,
            method=method,
            library=UNSUPPORTED_QUANTIZATIONS[method],
            hint=_USE_UNQUANTIZED_HINT,
        )


def suggest_fix(folder: Path) -> Callable[[Exception], Phrase]:
    """For `as_user_error`: what helps where a folder's config, weights, tokenizer or processor
    cannot be loaded, for the end of a sentence."""
    return partial(_suggest_fix, folder)


def _suggest_fix(folder: Path, problem: Exception) -> Phrase:
    if pointers := [path for path in without_hidden(folder.glob("*")) if is_git_lfs_pointer(path)]:
        return Phrase("look at {file}: {hint}", file=pointers[0].name, hint=GIT_LFS_HINT)
    if marked := [path for path in without_hidden(folder.glob("*.json")) if has_bom(path)]:
        return Phrase(
            "save {file} as UTF-8 without the mark (BOM) that it begins with", file=marked[0].name
        )
    files = {name: _read_entries(folder / name) for name in _CONFIG_FILES}
    if "trust_remote_code" in str(problem) or "custom code" in str(problem):
        return Phrase(
            "it brings code of its own (auto_map), which is never run; take a model that "
            "transformers itself knows"
        )
    if right_class := _suggest_known_class(folder, files):
        return right_class
    if method := _quantization_method(files["config.json"]):
        return Phrase(
            "its weights are quantized by {method}; {hint}",
            method=truncate(method, 40),
            hint=_USE_UNQUANTIZED_HINT,
        )
    if isinstance(problem, ImportError):
        return Phrase("install the library that this names, or take a model that does without")
    is_damaged = isinstance(problem, JSONDecodeError | UnicodeDecodeError | OSError)
    return COPY_AGAIN_HINT if is_damaged else Phrase("correct it, or copy it again from its source")


def _suggest_known_class(folder: Path, files: dict[str, dict]) -> Phrase | None:
    """A class that transformers does not have, and the right one; None where there is none such."""
    import transformers

    model_type = str(files["config.json"].get("model_type"))
    for number, entry in enumerate(_CLASS_ENTRIES):
        for name, values in files.items():
            class_name = values.get(entry)
            if not isinstance(class_name, str) or hasattr(transformers, class_name):
                continue
            hint = Phrase("correct it")
            if model_type in _CLASSES_BY_MODEL_TYPE:
                hint = Phrase("write {name}", name=_CLASSES_BY_MODEL_TYPE[model_type][number])
            return Phrase(
                "{path} has {entry} {word}, which transformers does not know; {hint}",
                path=folder / name,
                entry=entry,
                word=truncate(class_name, 60),
                hint=hint,
            )
    return None


def _quantization_method(values: dict) -> Any:
    """How a config says that weights are quantized; None by no means, or as it is done here."""
    quantized = values.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    return method if isinstance(method, str) and method != "bitsandbytes" else None


def _read_entries(path: Path) -> dict:
    """A JSON file's entries, those of its image processor among them; none where it is broken."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    inner = values.get("image_processor")
    return (inner if isinstance(inner, dict) else {}) | values
