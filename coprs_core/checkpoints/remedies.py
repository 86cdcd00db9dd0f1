"""What helps where transformers cannot read a model's folder: to copy it again does only where a
file came damaged."""

from collections.abc import Callable
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from coprs_core.errors import CoPRSError, Phrase, truncated
from coprs_core.files import FETCH, has_mark, is_pointer, visible
from coprs_core.machine import COPY_AGAIN
from coprs_core.parsing import from_json

UNSUPPORTED = {"awq": "gptqmodel (once autoawq)", "gptq": "gptqmodel"}
"""Ways of quantizing, by `quant_method`, and the libraries that their weights need."""
_UNQUANTIZED = Phrase(
    "take the same model with unquantized weights, which --quantize nf4 or int8 makes small here"
)
_FILES = (
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
)
_WORDS = {
    "qwen2_5_vl": ("Qwen2VLImageProcessor", "Qwen2_5_VLProcessor", "Qwen2Tokenizer"),
    "qwen3_vl": ("Qwen2VLImageProcessor", "Qwen3VLProcessor", "Qwen2Tokenizer"),
    "qwen3_5": ("Qwen2VLImageProcessor", "Qwen3VLProcessor", "Qwen3_5Tokenizer"),
    "llava": ("CLIPImageProcessor", "LlavaProcessor", "LlamaTokenizer"),
    "internvl": ("GotOcr2ImageProcessor", "InternVLProcessor", "Qwen2Tokenizer"),
}
_ENTRIES = ("image_processor_type", "processor_class", "tokenizer_class")
"""Entries that name a class of transformers; of each type of model the right ones, in their
order."""


def check_quantized(values: dict, path: Path) -> None:
    """Raises `CoPRSError` where a config.json is of weights that are quantized in a way that is not
    supported."""
    method = _method(values)
    if method in UNSUPPORTED:
        raise CoPRSError(
            "{path} says that the weights are quantized by {method}: that needs the library "
            "{library}, which is not supported; {hint}.",
            path=path,
            method=method,
            library=UNSUPPORTED[method],
            hint=_UNQUANTIZED,
        )


def remedy(folder: Path) -> Callable[[Exception], Phrase]:
    """For `as_user_error`: what helps where a folder's config, weights, tokenizer or processor
    cannot be loaded, for the end of a sentence."""
    return partial(_remedy, folder)


def _remedy(folder: Path, problem: Exception) -> Phrase:
    if pointers := [path for path in visible(folder.glob("*")) if is_pointer(path)]:
        return Phrase("look at {file}: {hint}", file=pointers[0].name, hint=FETCH)
    if marked := [path for path in visible(folder.glob("*.json")) if has_mark(path)]:
        return Phrase(
            "save {file} as UTF-8 without the mark (BOM) that it begins with", file=marked[0].name
        )
    files = {name: _entries(folder / name) for name in _FILES}
    if "trust_remote_code" in str(problem) or "custom code" in str(problem):
        return Phrase(
            "it brings code of its own (auto_map), which is never run; take a model that "
            "transformers itself knows"
        )
    if word := _unknown_word(folder, files):
        return word
    if method := _method(files["config.json"]):
        return Phrase(
            "its weights are quantized by {method}; {hint}",
            method=truncated(method, 40),
            hint=_UNQUANTIZED,
        )
    if isinstance(problem, ImportError):
        return Phrase("install the library that this names, or take a model that does without")
    is_damaged = isinstance(problem, JSONDecodeError | UnicodeDecodeError | OSError)
    return COPY_AGAIN if is_damaged else Phrase("correct it, or copy it again from its source")


def _unknown_word(folder: Path, files: dict[str, dict]) -> Phrase | None:
    """A class that transformers does not have, and the right one; None where there is none such."""
    import transformers

    kind = str(files["config.json"].get("model_type"))
    for number, entry in enumerate(_ENTRIES):
        for name, values in files.items():
            word = values.get(entry)
            if not isinstance(word, str) or hasattr(transformers, word):
                continue
            right = Phrase("correct it")
            if kind in _WORDS:
                right = Phrase("write {name}", name=_WORDS[kind][number])
            return Phrase(
                "{path} has {entry} {word}, which transformers does not know; {hint}",
                path=folder / name,
                entry=entry,
                word=truncated(word, 60),
                hint=right,
            )
    return None


def _method(values: dict) -> Any:
    """How a config says that weights are quantized; None by no means, or as it is done here."""
    quantized = values.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    return method if isinstance(method, str) and method != "bitsandbytes" else None


def _entries(path: Path) -> dict:
    """A JSON file's entries, those of its image processor among them; none where it is broken."""
    try:
        values = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    inner = values.get("image_processor")
    return (inner if isinstance(inner, dict) else {}) | values
