"""Find, save and load checkpoints: an ordinary folder with everything that an answer needs.

coprs.json                   sizes, prompt template, focus token (CoPRSConfig)
mllm/                        a Hugging Face folder: config, weights, tokenizer, processor
image_encoder.safetensors    SAM's image encoder, SAM's names
prior.safetensors            the query head, the image keys and the fusion
decoder.safetensors          SAM's prompt encoder and mask decoder, SAM's names
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from coprs_core.errors import CoPRSError
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.model.decoder import FLOAT32_BUFFER

MINIATURE = Path(__file__).resolve().parent.parent / "assets" / "mini"
PARTS = ("image_encoder", "prior", "decoder")
QUANTIZATIONS = ("none", "nf4", "int8")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
           "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in evaluation mode, and what turns photos and words into its inputs."""

    name: str
    model: CoPRS
    tokenizer: object
    image_processor: object
    quantization: str


def find_checkpoint(name: str) -> Path:
    """The folder of "mini" or of a path; raises `CoPRSError` where it is no checkpoint of ours."""
    folder = MINIATURE if name == "mini" else Path(name).expanduser()
    if not folder.is_dir():
        raise CoPRSError(f"There is no checkpoint {name!r}: give “mini” or a folder that holds coprs.json.")
    if not (folder / "coprs.json").is_file():
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise CoPRSError(
            f"The folder {str(folder)!r} holds no coprs.json (it holds {held}): give a CoPRS checkpoint folder."
        )
    return folder


def save_checkpoint(folder: Path, model: CoPRS, processor, dtype: torch.dtype | None = None) -> None:
    """Write a model and its processor (with tokenizer) as a checkpoint folder, in `dtype` or as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coprs.json").write_text(json.dumps(model.config.to_dict(), indent=2, ensure_ascii=False) + "\n")
    kept = model.mllm.dtype
    model.mllm.to(dtype or kept).save_pretrained(folder / "mllm")
    model.mllm.to(kept)
    processor.save_pretrained(folder / "mllm")
    for part in PARTS:
        state = {
            k: v.detach().to("cpu", dtype or v.dtype).contiguous() for k, v in getattr(model, part).state_dict().items()
        }
        save_file(state, folder / f"{part}.safetensors")


def load_checkpoint(
    name: str = "mini", device: str = "auto", dtype: str = "auto", quantization: str = "none"
) -> Checkpoint:
    """Load "mini" or a checkpoint folder, strictly: every tensor has its place and every place its tensor.

    Args:
        name: "mini" or a folder.
        device: "auto" (CUDA, then Apple's MPS, then the CPU) or a torch device.
        dtype: "auto" (bfloat16 on a GPU, float32 on a CPU) or float32 / bfloat16 / float16 (fp32 / bf16 / fp16).
        quantization: "none", or "nf4" / "int8" for the language model's linear layers.
    """
    folder, device = find_checkpoint(name), choose_device(device)
    dtype = choose_dtype(dtype, device)
    if quantization not in QUANTIZATIONS:
        raise CoPRSError(f"Quantization {quantization!r} is not known: choose {', '.join(QUANTIZATIONS)}.")
    try:
        config = CoPRSConfig.from_dict(json.loads((folder / "coprs.json").read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise CoPRSError(
            f"{folder / 'coprs.json'} is not valid JSON ({problem}): copy it again from its source."
        ) from problem
    mllm = _load_mllm(folder / "mllm", device, dtype, quantization)
    width = mllm.get_input_embeddings().embedding_dim
    if width != config.llm_width:
        raise CoPRSError(
            f"coprs.json says llm_width {config.llm_width} and mllm/ has {width}: the two are of different models."
        )
    with torch.device("meta"):
        model = CoPRS(config, nn.Module())
    model.mllm = mllm
    for part in PARTS:
        _load_part(getattr(model, part), folder / f"{part}.safetensors", device, dtype)
    tokenizer, image_processor = _load_processor(folder / "mllm")
    focus_id = tokenizer.convert_tokens_to_ids(config.focus_token)
    if focus_id is None or focus_id == tokenizer.unk_token_id:
        raise CoPRSError(
            f"The tokenizer in {folder / 'mllm'} does not know the focus token {config.focus_token}: add it."
        )
    return Checkpoint(name, model.eval().requires_grad_(False), tokenizer, image_processor, quantization)


def choose_device(device: str) -> torch.device:
    """The torch device of a name, "auto" included; raises `CoPRSError` where this machine does not have it."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as problem:
        raise CoPRSError(f"Device {device!r} is not known: choose auto, cuda, cuda:1, mps or cpu.") from problem
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(
        chosen.type, False
    )
    if not there or (chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()):
        raise CoPRSError(f"This machine has no device {device!r}: choose auto or cpu.")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in _DTYPES:
        raise CoPRSError(f"Precision {dtype!r} is not known: choose auto, {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def _load_mllm(folder: Path, device: torch.device, dtype: torch.dtype, quantization: str) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise CoPRSError(
            f"The checkpoint has no {folder / 'config.json'}: copy its folder mllm/ again from its source."
        )
    options = {}
    if quantization != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=quantization == "nf4",
            load_in_8bit=quantization == "int8",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["model.visual", "lm_head"],
        )
    bar_was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, SafetensorError, ValueError, RuntimeError, json.JSONDecodeError) as problem:
        raise CoPRSError(
            f"The language model in {folder} cannot be loaded ({_first_line(problem)}): copy it again."
        ) from problem
    finally:
        transformers_logging.enable_progress_bar() if bar_was_on else None
    _report(
        folder, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), [str(m) for m in info["mismatched_keys"]]
    )
    return model


def _load_part(module: nn.Module, path: Path, device: torch.device, dtype: torch.dtype) -> None:
    if not path.is_file():
        raise CoPRSError(f"The checkpoint has no file {path}: copy it again from its source.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            state = {
                k: file.get_tensor(k).to(torch.float32 if k.endswith(FLOAT32_BUFFER) else dtype) for k in file.keys()
            }
    except (SafetensorError, OSError) as problem:
        raise CoPRSError(f"{path} is broken ({_first_line(problem)}): copy it again from its source.") from problem
    expected = module.state_dict()
    wrong = [f"{k} is {list(state[k].shape)} and {list(v.shape)} was expected" for k, v in expected.items()
             if k in state and state[k].shape != v.shape]  # fmt: skip
    _report(path, sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys()), wrong)
    module.load_state_dict(state, strict=True, assign=True)


def _load_processor(folder: Path):
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True), AutoImageProcessor.from_pretrained(
            folder, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise CoPRSError(
            f"Tokenizer or processor in {folder} cannot be loaded ({_first_line(problem)}): copy it again."
        ) from problem


def _report(path: Path, missing: list[str], unexpected: list[str], wrong: list[str]) -> None:
    for what, names in (("lacks", missing), ("holds, against expectation,", unexpected), ("has a wrong size:", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CoPRSError(
                f"{path} {what} {', '.join(names[:3])}{more}: it is not of this model; copy it again from its source."
            )


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
