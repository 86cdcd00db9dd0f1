"""Speed and memory at true size, with random weights where the real ones cannot be had: a checkpoint folder of that size is
written, loaded as any other, and asked once."""

import json
import multiprocessing
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from PIL import Image
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from coprs_core.checkpoints.load import MINIATURE, PARTS
from coprs_core.answer.engine import Engine, load
from coprs_core.errors import CoPRSError
from coprs_core.machine import free_disk, in_words
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.model.decoder import FLOAT32_BUFFER
from coprs_core.model.mllm import Reading, generate
from coprs_core.model.vision import SAM_SIZES
from coprs_core.photos import open_photo

LLM_SIZES = {  # as in the published configs of Qwen2.5-VL
    "3b": dict(hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
               num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
    "7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
               num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False),
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One run. Memory in bytes: on CUDA what torch allocated there, else the process's; times in seconds.

    Two answers are brought to a mask, each about a picture of its own: in the first (`cold_…`) weights may still be read
    from the disk; the other times are of the second, and the peak is of both."""

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


def benchmark(
    size: str, sam: str, device: str, dtype: str, quantization: str, tokens: int, folder: Path | None = None
) -> Measured:
    """Write a checkpoint of random weights (3b or 7b; kept where `folder` is given), load it and bring one answer of
    `tokens` tokens about a 1024×768 picture to a mask."""
    kept = folder
    folder = folder or Path(tempfile.mkdtemp(prefix="coprs-"))
    try:
        if not (folder / "coprs.json").is_file():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:  # keeps its memory out of ours
                other.submit(write_random_checkpoint, folder, size, sam).result()
        return measure(str(folder), f"{size}, random weights", sam, device, dtype, quantization, tokens)
    finally:
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)


def measure(name: str, shown: str, sam: str, device: str, dtype: str, quantization: str, tokens: int) -> Measured:
    """Load a CoPRS checkpoint and time one answer. The model writes `tokens` tokens of its own, then the focus token is
    given to it, so that weights which know nothing come to a mask too."""
    before, start = _memory(torch.device("cpu")), time.perf_counter()
    engine = load(name, device, dtype, quantization)
    seconds, cuda = time.perf_counter() - start, engine.model.device.type == "cuda"
    loaded = _memory(engine.model.device) - (0 if cuda else before)
    peak_loading = peak_memory(engine.model.device) - (0 if cuda else before)
    cold, _ = _one_answer(engine, tokens, seed=0)
    times, pixels = _one_answer(engine, tokens, seed=1)
    weights = sum({p.data_ptr(): p.numel() * p.element_size() for p in engine.model.parameters()}.values())
    return Measured(
        shown, sam, _device_name(engine.model.device), engine.settings["dtype"], quantization, weights, seconds, loaded,
        peak_loading, peak_memory(engine.model.device) - (0 if cuda else before), cold[0], *times, pixels,
    )  # fmt: skip


def _one_answer(engine: Engine, tokens: int, seed: int) -> tuple[tuple[float, float, float], int]:
    """(seconds to the first token, tokens a second, seconds from focus token to mask) and the mask's area."""
    rng = np.random.default_rng(seed)
    photo = open_photo(Image.fromarray(rng.integers(0, 255, (768, 1024, 3), np.uint8)))
    marks = [time.perf_counter()]

    def mark() -> None:
        if engine.model.device.type == "cuda":
            torch.cuda.synchronize(engine.model.device)
        marks.append(time.perf_counter())

    features = engine.read(photo)
    reading = Reading(
        engine.model.mllm, engine.prompt("the thing that keeps the rain off", features.visual), features.visual
    )
    for i, _ in enumerate(generate(reading, None, set(), tokens)):
        mark() if i == 0 else None
    mark()
    embedding = reading.feed([engine.focus_id])[-1:]
    _, mask = engine.look(embedding, features, photo.size)
    mark()
    return (marks[1] - marks[0], (tokens - 1) / max(marks[2] - marks[1], 1e-9), marks[3] - marks[2]), int(mask.sum())


def write_random_checkpoint(folder: Path, size: str, sam: str) -> None:
    """A checkpoint folder of random bfloat16 weights at true size; tokenizer and processor are the miniature's."""
    if size not in LLM_SIZES or sam not in SAM_SIZES:
        raise CoPRSError(
            f"Sizes {size!r} with {sam!r} are not known: choose {', '.join(LLM_SIZES)} with {', '.join(SAM_SIZES)}."
        )
    config = qwen_config(size)
    width = config.get_text_config().hidden_size
    with torch.device("meta"):
        model = CoPRS(CoPRSConfig(width, SAM_SIZES[sam]), Qwen2_5_VLForConditionalGeneration(config))
    needed = sum(p.numel() for p in model.parameters()) * 2
    if needed > free_disk(folder):
        raise CoPRSError(
            f"Random weights need {in_words(needed)} of disk and {in_words(free_disk(folder))} are free: choose another --folder."
        )
    shutil.copytree(
        MINIATURE / "mllm", folder / "mllm", ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True
    )
    (folder / "mllm" / "config.json").write_text(json.dumps(config.to_dict() | {"dtype": "bfloat16"}))
    processor = folder / "mllm" / "processor_config.json"
    values = json.loads(processor.read_text())
    values["image_processor"]["size"] = {"shortest_edge": 3136, "longest_edge": 12845056}
    processor.write_text(json.dumps(values))
    torch.manual_seed(0)
    state = dict(model.mllm.state_dict())
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    plan = split_torch_state_dict_into_shards(
        {k: torch.empty_like(v, dtype=torch.bfloat16) for k, v in state.items()},
        filename_pattern="model{suffix}.safetensors", max_shard_size="2GB",
    )  # fmt: skip
    for file, held in plan.filename_to_tensors.items():
        save_file({k: _random(k, state[k]) for k in held}, folder / "mllm" / file, metadata={"format": "pt"})
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    (folder / "mllm" / "model.safetensors.index.json").write_text(json.dumps(index))
    for part in PARTS:
        save_file(
            {k: _random(k, v) for k, v in getattr(model, part).state_dict().items()}, folder / f"{part}.safetensors"
        )
    (folder / "coprs.json").write_text(json.dumps(model.config.to_dict()))


def qwen_config(size: str) -> Qwen2_5_VLConfig:
    """The config of Qwen2.5-VL at 3b or 7b, with the token ids of the miniature's tokenizer."""
    sizes = dict(LLM_SIZES[size])
    tied = sizes.pop("tie_word_embeddings")
    ids = json.loads((MINIATURE / "mllm" / "config.json").read_text())
    rope = dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24])
    return Qwen2_5_VLConfig(
        text_config=dict(sizes, rope_parameters=rope, bos_token_id=None, eos_token_id=None, pad_token_id=None),
        vision_config=dict(
            depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, patch_size=14, window_size=112,
            out_hidden_size=sizes["hidden_size"], fullatt_block_indexes=[7, 15, 23, 31],
        ),
        tie_word_embeddings=tied,
        **{k: ids[k] for k in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")},
    )  # fmt: skip


def _random(name: str, like: torch.Tensor) -> torch.Tensor:
    if name.endswith(FLOAT32_BUFFER):
        return torch.randn(like.shape)
    tensor = torch.empty(like.shape, dtype=torch.bfloat16)
    if like.dim() < 2:
        return tensor.fill_(0.0 if name.endswith("bias") else 1.0)
    return tensor.uniform_(-0.03, 0.03)


def _memory(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def peak_memory(device: torch.device) -> int:
    """The most memory held so far, in bytes: on CUDA what torch allocated there, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    process = psutil.Process().memory_info()
    if hasattr(process, "peak_wset"):  # Windows, which has no resource module
        return process.peak_wset
    if (
        status := Path("/proc/self/status")
    ).is_file():  # on Linux getrusage's peak is inherited from the parent process
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({torch.get_num_threads()} threads)"
    )


def table(m: Measured) -> str:
    rows = (
        ("model", f"{m.model}, {m.sam}, {m.dtype}" + ("" if m.quantization == "none" else f", {m.quantization}")),
        ("device", m.device),
        ("weights in memory", in_words(m.weights)),
        (
            "load",
            f"{m.load_seconds:.1f} s, {in_words(m.memory_after_loading)} after, {in_words(m.peak_while_loading)} at most",
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


def as_json(m: Measured) -> str:
    return json.dumps(asdict(m), indent=1)
