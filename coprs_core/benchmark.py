"""Speed and memory at true size, with random weights where the real ones cannot be had: a
checkpoint folder of that size is written, loaded as any other, and asked once."""

import json
import multiprocessing
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from coprs_core.answer.engine import Engine
from coprs_core.checkpoints.load import MINIATURE, load_checkpoint
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.save import language_tensors, write_checkpoint
from coprs_core.checkpoints.source import PARTS
from coprs_core.checkpoints.tensors import LazyTensors
from coprs_core.errors import CoPRSError
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.model.decoder import FLOAT32_BUFFER
from coprs_core.model.mllm import generate
from coprs_core.model.vision import SAM_SIZES
from coprs_core.photos import open_photo
from coprs_core.sizes import free_disk, in_words

LLM_SIZES: dict[str, dict[str, int]] = {  # as in the published configs of Qwen2.5-VL
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}
_TIED = ("3b",)
"""Sizes whose output layer is the embeddings again."""


@dataclass(frozen=True)
class Measured:
    """One run. Memory in bytes: on CUDA what torch allocated there, else the process's; times in
    seconds.

    Two answers are brought to a mask, each about a picture of its own: in the first (`cold_…`)
    weights may still be read from the disk; the other times are of the second, and the peak is of
    both.
    """

    model: str
    sam: str
    device: str
    dtype: str
    quantization: str
    weights: int
    load_seconds: float
    memory_after_loading: int
    peak_while_loading: int
    peak_while_answering: int
    cold_first_token_seconds: float
    first_token_seconds: float
    tokens_per_second: float
    focus_to_mask_seconds: float
    mask_pixels: int


def benchmark(size: str, options: LoadOptions, tokens: int, folder: Path | None = None) -> Measured:
    """Time one answer of a model of random weights.

    A checkpoint of that size (3b or 7b, with `options.sam`) is written, kept where `folder` is
    given, loaded, and one answer of `tokens` tokens about a 1024×768 picture is brought to a mask.
    """
    place = folder or Path(tempfile.mkdtemp(prefix="coprs-"))
    try:
        if not (place / "coprs.json").is_file():
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, spawn) as other:  # keeps its memory out of ours
                other.submit(write_random_checkpoint, place, size, options.sam).result()
        config = CoPRSConfig.read(place / "coprs.json")
        wanted = LLM_SIZES[size]["hidden_size"], SAM_SIZES[options.sam]
        if (config.llm_width, config.vision) != wanted:
            raise CoPRSError(f"{place} holds another size: choose another --folder.")
        return measure(str(place), f"{size}, random weights", options, tokens)
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


def measure(name: str, shown: str, options: LoadOptions, tokens: int) -> Measured:
    """Load a CoPRS checkpoint and time one answer; `shown` is what the model is called in the
    table.

    The model writes `tokens` tokens of its own, then the focus token is given to it, so that
    weights which know nothing come to a mask too.
    """
    before, start = _memory(torch.device("cpu")), time.perf_counter()
    engine = Engine(load_checkpoint(name, options))
    seconds, device = time.perf_counter() - start, engine.segmenter.device
    other = 0 if device.type == "cuda" else before  # what the process held before
    loaded, peak_loading = _memory(device) - other, peak_memory(device) - other
    cold, _ = _one_answer(engine, tokens, seed=0)
    times, pixels = _one_answer(engine, tokens, seed=1)
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in engine.model.parameters()}
    return Measured(
        model=shown,
        sam=options.sam,
        device=_device_name(device),
        dtype=engine.settings["dtype"],
        quantization=options.quantization,
        weights=sum(weights.values()),
        load_seconds=seconds,
        memory_after_loading=loaded,
        peak_while_loading=peak_loading,
        peak_while_answering=peak_memory(device) - other,
        cold_first_token_seconds=cold.first_token,
        first_token_seconds=times.first_token,
        tokens_per_second=times.tokens_per_second,
        focus_to_mask_seconds=times.focus_to_mask,
        mask_pixels=pixels,
    )


@dataclass(frozen=True)
class _Times:
    """Of one answer: seconds to the first token, tokens a second, seconds from focus token to
    mask."""

    first_token: float
    tokens_per_second: float
    focus_to_mask: float


def _one_answer(engine: Engine, tokens: int, seed: int) -> tuple[_Times, int]:
    """The times of one answer, and its mask's area."""
    rng, focus = np.random.default_rng(seed), engine.focus
    photo = open_photo(Image.fromarray(rng.integers(0, 255, (768, 1024, 3), np.uint8)))
    marks = [time.perf_counter()]

    def mark() -> None:
        if focus.device.type == "cuda":
            torch.cuda.synchronize(focus.device)
        marks.append(time.perf_counter())

    with engine.within_memory():
        features = engine.read(photo)
        reading = focus.reading("the thing that keeps the rain off", features)
        for i, _ in enumerate(generate(reading, None, set(), tokens)):
            if i == 0:
                mark()
        mark()
        _, mask = focus.look(reading.feed([focus.focus_id])[-1:], features)
        mark()
    rate = (tokens - 1) / max(marks[2] - marks[1], 1e-9)
    return _Times(marks[1] - marks[0], rate, marks[3] - marks[2]), int(mask.sum())


def write_random_checkpoint(folder: Path, size: str, sam: str) -> None:
    """A checkpoint folder of random bfloat16 weights at true size; tokenizer and processor are the
    miniature's."""
    if size not in LLM_SIZES or sam not in SAM_SIZES:
        raise CoPRSError(
            f"Sizes {size!r} with {sam!r} are not known: "
            f"choose {', '.join(LLM_SIZES)} with {', '.join(SAM_SIZES)}."
        )
    config = qwen_config(size)
    width = config.get_text_config().hidden_size
    with torch.device("meta"):
        mllm = Qwen2_5_VLForConditionalGeneration(config)
        model = CoPRS(CoPRSConfig(width, SAM_SIZES[sam]), mllm)
    needed, free = sum(p.numel() for p in model.parameters()) * 2, free_disk(folder)
    if needed > free:
        raise CoPRSError(
            f"Random weights need {in_words(needed)} of disk and {in_words(free)} are free: "
            "choose another --folder."
        )
    _write_language_files(folder / "mllm", config)
    torch.manual_seed(0)
    parts = {part: _random(folder, model.get_submodule(part).state_dict()) for part in PARTS}
    write_checkpoint(folder, model.config, _random(folder, language_tensors(mllm)), parts)


def _write_language_files(place: Path, config: Qwen2_5_VLConfig) -> None:
    """The miniature's tokenizer and processor with another config, for photos of any size."""
    source = MINIATURE / "mllm"
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(source, place, ignore=weights, dirs_exist_ok=True)
    (place / "config.json").write_text(json.dumps(config.to_dict() | {"dtype": "bfloat16"}))
    processor = place / "processor_config.json"
    values = json.loads(processor.read_text())
    values["image_processor"]["size"] = {"shortest_edge": 3136, "longest_edge": 12845056}
    processor.write_text(json.dumps(values))


def qwen_config(size: str) -> Qwen2_5_VLConfig:
    """The config of Qwen2.5-VL at 3b or 7b, with the token ids of the miniature's tokenizer."""
    ids = json.loads((MINIATURE / "mllm" / "config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    no_tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    vision_config = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "window_size": 112,
        "out_hidden_size": LLM_SIZES[size]["hidden_size"],
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    return Qwen2_5_VLConfig(
        text_config={**LLM_SIZES[size], "rope_parameters": rope, **no_tokens},
        vision_config=vision_config,
        tie_word_embeddings=size in _TIED,
        image_token_id=ids["image_token_id"],
        video_token_id=ids["video_token_id"],
        vision_start_token_id=ids["vision_start_token_id"],
        vision_end_token_id=ids["vision_end_token_id"],
    )


def _random(path: Path, like: dict[str, torch.Tensor]) -> LazyTensors:
    """Random weights of the names and shapes of a state."""

    def get(name: str) -> torch.Tensor:
        shape = like[name].shape
        if name.endswith(FLOAT32_BUFFER):
            return torch.randn(shape)
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        if len(shape) < 2:
            return tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        return tensor.uniform_(-0.03, 0.03)

    return LazyTensors(path, {k: (v.shape, torch.bfloat16) for k, v in like.items()}, get)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def peak_memory(device: torch.device) -> int:
    """The most memory held so far, in bytes: on CUDA what torch allocated, else this process's
    resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    process = psutil.Process().memory_info()
    if hasattr(process, "peak_wset"):  # Windows, which has no resource module
        return process.peak_wset
    # on Linux getrusage's peak is inherited from the parent process
    status = Path("/proc/self/status")
    if status.is_file() and (peak := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({torch.get_num_threads()} threads)"


def table(m: Measured) -> str:
    quantized = "" if m.quantization == "none" else f", {m.quantization}"
    rows = (
        ("model", f"{m.model}, {m.sam}, {m.dtype}{quantized}"),
        ("device", m.device),
        ("weights in memory", in_words(m.weights)),
        (
            "load",
            f"{m.load_seconds:.1f} s, {in_words(m.memory_after_loading)} after, "
            f"{in_words(m.peak_while_loading)} at most",
        ),
        ("peak while answering", in_words(m.peak_while_answering)),
        (
            "seconds to the first token",
            f"{m.first_token_seconds:.2f} ({m.cold_first_token_seconds:.2f} in the first answer)",
        ),
        ("tokens a second", f"{m.tokens_per_second:.2f}"),
        ("focus token to mask", f"{m.focus_to_mask_seconds * 1000:.0f} ms"),
        ("mask", f"{m.mask_pixels:,} of {1024 * 768:,} pixels"),
    )
    return "\n".join(f"{name:<28}{value}" for name, value in rows)
