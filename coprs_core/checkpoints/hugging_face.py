"""Hugging Face folders: config, weights, tokenizer and processor, each read with its own sentence
for a break."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils import logging as transformers_logging

from coprs_core.checkpoints.downloads import missing_shards
from coprs_core.checkpoints.folder_checks import (
    check_config_values,
    check_image_processor,
    check_quantization_method,
    check_weight_count,
    suggest_fix,
)
from coprs_core.checkpoints.mapped_files import release_pages_periodically
from coprs_core.checkpoints.plan import uses_own_int8
from coprs_core.checkpoints.tensors import raise_on_mismatch
from coprs_core.errors import CoPRSError, Phrase, truncate
from coprs_core.files import read_text, without_hidden
from coprs_core.machine import as_user_error
from coprs_core.model.backends.coordinates import DEFAULT_CHAT_TEMPLATE, QUESTION_SLOT
from coprs_core.model.backends.cpu import optimize
from coprs_core.model.backends.mllm import ARCHITECTURES, Mllm
from coprs_core.parsing import parse_json
from coprs_core.prompts import IMAGE_SLOT

_OTHER_WEIGHT_SUFFIXES = (".bin", ".gguf", ".pt", ".pth")
LOCAL_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""For every call: without it transformers may ask on the terminal to run code of the folder."""


def read_config(folder: Path) -> Any:
    """The Hugging Face config of a folder, of an architecture that is supported."""
    path = folder / "config.json"
    if not path.is_file():
        raise CoPRSError(
            "The checkpoint has no {path}: copy its folder {name}/ again from its source.",
            path=path,
            name=folder.name,
        )
    with as_user_error(Phrase("{path} cannot be read", path=path), suggest_fix(folder)):
        values = parse_json(read_text(path))
        check_config_values(values, path)
        _check_model_type(values, path)
        check_quantization_method(values, path)
        return AutoConfig.from_pretrained(folder, **LOCAL_ONLY)


def _check_model_type(values: dict, path: Path) -> None:
    """Raises `CoPRSError` where a config.json is of a model that is not supported."""
    kind = values.get("model_type")
    if kind in ARCHITECTURES:
        return
    note = Phrase("")
    if "auto_map" in values:
        note = Phrase(" and brings code of its own (auto_map), which is never run")
    raise CoPRSError(
        "{path} is of type {kind!r}{own}: only {names} are supported.",
        path=path,
        kind=truncate(kind),
        own=note,
        names=", ".join(ARCHITECTURES),
    )


def has_tied_embeddings(config: Any) -> bool:
    """Whether a config says that output layer and embeddings are one tensor."""
    configs = (config, config.get_text_config())
    return any(getattr(c, "tie_word_embeddings", False) for c in configs)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, all of them there."""
    missing = missing_shards(folder) if folder.is_dir() else ["*.safetensors"]
    if missing:
        missing_path = folder / truncate(missing[0])
        others = sorted(p.name for p in folder.glob("*") if p.suffix in _OTHER_WEIGHT_SUFFIXES)
        if others and not without_hidden(folder.glob("*.safetensors")):
            raise CoPRSError(
                "The language model lacks {path} and holds {file}: take the model's "
                "weights as safetensors, which alone are read.",
                path=missing_path,
                file=truncate(others[0]),
            )
        raise CoPRSError(
            "The language model lacks {path}: copy it again from its source.", path=missing_path
        )
    return without_hidden(folder.glob("*.safetensors"))


def load_mllm(
    folder: Path, device: torch.device, dtype: torch.dtype, quantization: str = "none"
) -> Mllm:
    """A Hugging Face model by its architecture, strictly.

    Where it is quantized, so are the language model's linear layers and nothing else: by
    bitsandbytes, or by `optimize` (see `uses_own_int8`).
    """
    own_int8 = uses_own_int8(quantization, device)
    config, options = read_config(folder), {}
    page_release: Any = nullcontext()
    meta_mllm = build_meta_mllm(config, folder)
    files = weight_files(folder)
    check_weight_count(meta_mllm, files, has_tied_embeddings(config), folder)
    if quantization != "none":
        page_release = release_pages_periodically(files)
        if not own_int8:
            options["quantization_config"] = _quantization_config(meta_mllm, dtype, quantization)
    fault = Phrase("The language model in {folder} cannot be loaded", folder=folder)
    with page_release, as_user_error(fault, suggest_fix(folder)):
        # 16 bits until its layers are quantized: a whole float32 model would take twice the memory
        load_dtype = torch.bfloat16 if own_int8 else dtype
        mllm = load_strictly(AutoModelForImageTextToText, folder, device, load_dtype, **options)
        if own_int8:
            optimize.apply(mllm.model.language_model, int8=True)
            mllm.to(dtype)
    return mllm


def load_strictly(
    model_class: Any, folder: Path, device: torch.device, dtype: torch.dtype, **options: Any
) -> Any:
    """A model of a kind of transformers; raises `CoPRSError` where a tensor has no place or a place
    no tensor."""
    with silence_transformers():
        model, info = model_class.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            output_loading_info=True,
            use_safetensors=True,
            **LOCAL_ONLY,
            **options,
        )
    wrong = [str(m) for m in info["mismatched_keys"]]
    raise_on_mismatch(folder, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), wrong)
    return model


def build_meta_mllm(config: Any, folder: Path) -> Mllm:
    """The model that a folder's config describes, on the meta device: sizes without weights."""
    fault = Phrase("{path} does not describe a model", path=folder / "config.json")
    with as_user_error(fault, suggest_fix(folder)), torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)


def _quantization_config(meta_mllm: Mllm, dtype: torch.dtype, quantization: str) -> Any:
    skipped = ["lm_head"]
    skipped += [f"model.{n}" for n, _ in meta_mllm.model.named_children() if n != "language_model"]
    # bitsandbytes computes 32 outputs at a time on a CPU: the gates of linear attention have fewer
    for name, module in meta_mllm.named_modules():
        if isinstance(module, nn.Linear) and module.out_features % 32:
            skipped.append(name)
    return BitsAndBytesConfig(
        load_in_4bit=quantization == "nf4",
        load_in_8bit=quantization == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


@contextmanager
def silence_transformers() -> Generator[None, None, None]:
    """Without the progress bar and the warnings of transformers: faults become a `CoPRSError`."""
    was_on, level = (
        transformers_logging.is_progress_bar_enabled(),
        transformers_logging.get_verbosity(),
    )
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if was_on:
            transformers_logging.enable_progress_bar()


def load_processor(folder: Path) -> Any:
    """The whole processor of a Hugging Face folder, tokenizer included."""
    return _load_pretrained(folder, AutoProcessor)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder."""
    return _load_pretrained(folder, AutoTokenizer)


def load_image_processor(folder: Path) -> Any:
    """The image processor of a Hugging Face folder, of the sizes of its model."""
    image_processor, config = _load_pretrained(folder, AutoImageProcessor), read_config(folder)
    fault = Phrase("The image processor in {folder} cannot be used", folder=folder)
    with as_user_error(fault, suggest_fix(folder)):
        check_image_processor(image_processor, config.vision_config, folder)
    return image_processor


def make_prompt_template(folder: Path, tokenizer: Any, image_id: int) -> str:
    """How a model is spoken to: its folder's own chat template, filled with one picture and one
    question, both as slots; `DEFAULT_CHAT_TEMPLATE` where the folder brings none.

    Raises `CoPRSError` where the template does not take a picture and a question.
    """
    fault = Phrase("The chat template in {folder} cannot be used", folder=folder)
    hint = Phrase("correct it, or take it away; then the usual one is used")
    with as_user_error(fault, hint):
        template = getattr(load_processor(folder), "chat_template", None) or tokenizer.chat_template
        if not template:
            return DEFAULT_CHAT_TEMPLATE
        content = [{"type": "image"}, {"type": "text", "text": QUESTION_SLOT}]
        filled = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
        image_token = tokenizer.convert_ids_to_tokens(image_id)
        filled = filled.replace(image_token, IMAGE_SLOT)
    if filled.count(IMAGE_SLOT) != 1 or filled.count(QUESTION_SLOT) != 1:
        raise CoPRSError(
            "{fault}: it takes no picture and question; {hint}.", fault=fault, hint=hint
        )
    return filled


def _load_pretrained(folder: Path, auto_class: Any) -> Any:
    fault = Phrase("Tokenizer or processor in {folder} cannot be loaded", folder=folder)
    with as_user_error(fault, suggest_fix(folder)):
        return auto_class.from_pretrained(folder, **LOCAL_ONLY)


def focus_token_id(tokenizer: Any, focus_token: str, folder: Path) -> int:
    """The focus token's id; raises `CoPRSError` where the tokenizer does not know it."""
    with as_user_error(Phrase("The tokenizer in {folder} cannot be used", folder=folder)):
        focus_id = tokenizer.convert_tokens_to_ids(focus_token)
    if focus_id is None or focus_id == tokenizer.unk_token_id:
        raise CoPRSError(
            "The tokenizer in {where} does not know the focus token {token}: add it.",
            where=folder,
            token=focus_token,
        )
    return focus_id


def check_focus_token(tokenizer: Any, focus_token: str, num_embeddings: int, folder: Path) -> int:
    """The focus token's id; raises `CoPRSError` where the embeddings have no row for it either."""
    focus_id = focus_token_id(tokenizer, focus_token, folder)
    if focus_id >= num_embeddings:
        raise CoPRSError(
            "The focus token {token} has id {id} and the embeddings in {where} have {rows} "
            "rows: tokenizer and weights are of different models.",
            token=focus_token,
            id=focus_id,
            where=folder,
            rows=num_embeddings,
        )
    return focus_id
