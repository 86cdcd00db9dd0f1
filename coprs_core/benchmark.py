"""Speed and memory at true size, with random weights where the real ones cannot be had: folders of
that size are written, loaded as any other, and asked."""

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from coprs_core.answer.engine import Engine
from coprs_core.checkpoints.load import load_checkpoint
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.plan import choose_sam
from coprs_core.errors import CoPRSError
from coprs_core.machine import choose_device, peak_memory
from coprs_core.model.backends.attention import attention_to_prior
from coprs_core.model.coprs import CoPRSConfig
from coprs_core.model.segmenter import RegionProposal
from coprs_core.model.vision import SAM_SIZES
from coprs_core.photos.photo import Photo, open_photo
from coprs_core.random_weights import (
    COORDINATE_MODELS,
    QWEN2_5_SIZES,
    write_random_checkpoint,
    write_random_coordinate_model,
)
from coprs_core.storage import format_bytes

RANDOM_SIZES = (*QWEN2_5_SIZES, *COORDINATE_MODELS)
RESOLUTION = (1024, 768)
INSTRUCTION = "the thing that keeps the rain off"


@dataclass(frozen=True)
class BenchmarkResult:
    """One run. Memory in bytes: on CUDA what torch allocated there, else the process's; times in
    seconds.

    Three answers are brought to a mask. The first two are each about a picture of its own: in the
    first (`cold_…`) weights may still be read from the disk. The third (`second_question_…`) is
    about the second's picture again. The other times are of the second; the peak is of all.
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
    second_question_first_token_seconds: float
    answer_seconds: float
    second_question_answer_seconds: float
    tokens: int
    picture: tuple[int, int]
    tokens_per_second: float
    focus_to_mask_seconds: float
    mask_pixels: int


def benchmark_random_model(
    size: str,
    options: LoadOptions,
    tokens: int,
    folder: Path | None = None,
    resolution: tuple[int, int] = RESOLUTION,
) -> BenchmarkResult:
    """Time answers of a model of random weights.

    A model of that size (one of `RANDOM_SIZES`, with `options.sam`) is written, kept where `folder`
    is given, loaded, and answers of `tokens` tokens about pictures of (width, height) are brought
    to a mask.
    """
    is_pointing = size in COORDINATE_MODELS
    if options.sam == "auto":
        device = choose_device(options.device)
        options = replace(options, sam=choose_sam("auto", device.type) if is_pointing else "vit_h")
    model_folder = folder or Path(tempfile.mkdtemp(prefix="coprs-"))
    try:
        write: Any = write_random_coordinate_model if is_pointing else write_random_checkpoint
        if is_pointing or not (model_folder / "coprs.json").is_file():
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, spawn) as executor:  # keeps its memory out of ours
                executor.submit(write, model_folder, size, options.sam).result()
        label = f"{size}, random weights"
        if is_pointing:
            options = replace(options, sam=str(model_folder / options.sam))
            return benchmark_model(str(model_folder / size), label, options, tokens, resolution)
        config = CoPRSConfig.from_file(model_folder / "coprs.json")
        expected = QWEN2_5_SIZES[size]["hidden_size"], SAM_SIZES[options.sam]
        if (config.llm_width, config.vision) != expected:
            raise CoPRSError(f"{model_folder} holds another size: choose another --folder.")
        return benchmark_model(str(model_folder), label, options, tokens, resolution)
    finally:
        if folder is None:
            shutil.rmtree(model_folder, ignore_errors=True)


def benchmark_model(
    name: str,
    label: str,
    options: LoadOptions,
    tokens: int,
    resolution: tuple[int, int] = RESOLUTION,
) -> BenchmarkResult:
    """Load a model and time its answers; `label` is what the model is called in the table.

    It writes `tokens` tokens of its own. Then the focus token, or a box, is given to it, so that
    weights which know nothing come to a mask too.
    """
    before, start = _allocated_memory(torch.device("cpu")), time.perf_counter()
    engine = Engine(load_checkpoint(name, options))
    seconds, device = time.perf_counter() - start, engine.segmenter.device
    baseline = 0 if device.type == "cuda" else before  # what the process held before
    loaded, peak_loading = _allocated_memory(device) - baseline, peak_memory(device) - baseline
    first, _ = _time_answer(engine, tokens, _noise_photo(resolution, seed=0))
    photo = _noise_photo(resolution, seed=1)
    second, pixels = _time_answer(engine, tokens, photo)
    third, _ = _time_answer(engine, tokens, photo)
    tensors = chain(engine.model.parameters(), engine.model.buffers())
    weights = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
    return BenchmarkResult(
        model=label,
        sam=Path(options.sam).name,
        device=_device_name(device),
        dtype=engine.settings["dtype"],
        quantization=engine.checkpoint.quantization,
        weights=sum(weights.values()),
        load_seconds=seconds,
        memory_after_loading=loaded,
        peak_while_loading=peak_loading,
        peak_while_answering=peak_memory(device) - baseline,
        cold_first_token_seconds=first.first_token,
        first_token_seconds=second.first_token,
        second_question_first_token_seconds=third.first_token,
        answer_seconds=second.total,
        second_question_answer_seconds=third.total,
        tokens=tokens,
        picture=resolution,
        tokens_per_second=second.tokens_per_second,
        focus_to_mask_seconds=second.focus_to_mask,
        mask_pixels=pixels,
    )


@dataclass(frozen=True)
class _AnswerTimes:
    """Of one answer: seconds to the first token, tokens a second, seconds from the last token to
    the mask, and of the whole."""

    first_token: float
    tokens_per_second: float
    focus_to_mask: float
    total: float


def _noise_photo(resolution: tuple[int, int], seed: int) -> Photo:
    shape = (resolution[1], resolution[0], 3)
    pixels = np.random.default_rng(seed).integers(0, 255, shape, np.uint8)
    return open_photo(Image.fromarray(pixels))


def _time_answer(engine: Engine, tokens: int, photo: Photo) -> tuple[_AnswerTimes, int]:
    """The times of one answer, and its mask's area."""
    device, marks = engine.segmenter.device, [time.perf_counter()]

    def mark() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter())

    write_answer = _answer_with_focus_token if engine.has_focus_token else _answer_with_box
    with engine.memory_guard():
        mask = write_answer(engine, tokens, photo, mark)
    mark()
    start, first, last, end = marks
    rate = (tokens - 1) / max(last - first, 1e-9)
    return _AnswerTimes(first - start, rate, end - last, end - start), int(mask.sum())


def _answer_with_focus_token(
    engine: Engine, tokens: int, photo: Photo, mark: Callable[[], None]
) -> np.ndarray:
    """An answer by the focus token; `mark` is called after the first token and after the last."""
    focus, features = engine.focus, engine.read(photo)
    session = focus.start_session(INSTRUCTION, features)
    for i, _ in enumerate(focus.language.batch.generate(session, None, set(), tokens)):
        if i == 0:
            mark()
    mark()
    return focus.prior_and_mask(session.feed([focus.focus_id])[-1:], features)[1]


def _answer_with_box(
    engine: Engine, tokens: int, photo: Photo, mark: Callable[[], None]
) -> np.ndarray:
    """An answer by a box, its attention observed and its heads chosen."""
    segmenter: Any = engine.segmenter
    features, language = engine.read(photo), segmenter.language
    session = segmenter.start_session(INSTRUCTION, features)
    attention = language.new_attention_trace(features.visual)
    for i, _ in enumerate(language.batch.generate(session, None, set(), tokens, attention)):
        if i == 0:
            mark()
    mark()
    seen = attention.attention_map(
        range(max(0, tokens - 20), tokens), attention.localization_heads()
    )
    height, width = photo.size
    box = 0.3 * width, 0.2 * height, 0.7 * width, 0.8 * height
    return segmenter.predict_mask(
        RegionProposal(attention_to_prior(seen, photo.size), box=box), features
    )


def _allocated_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({torch.get_num_threads()} threads)"


def format_result(result: BenchmarkResult) -> str:
    quantized = "" if result.quantization == "none" else f", {result.quantization}"
    rows = (
        ("model", f"{result.model}, {result.sam}, {result.dtype}{quantized}"),
        ("device", result.device),
        ("weights in memory", format_bytes(result.weights)),
        (
            "load",
            f"{result.load_seconds:.1f} s, {format_bytes(result.memory_after_loading)} after, "
            f"{format_bytes(result.peak_while_loading)} at most",
        ),
        ("peak while answering", format_bytes(result.peak_while_answering)),
        (
            "seconds to the first token",
            f"{result.first_token_seconds:.2f} "
            f"({result.cold_first_token_seconds:.2f} in the first answer)",
        ),
        (
            "… of a second question",
            f"{result.second_question_first_token_seconds:.2f}, about the same picture",
        ),
        ("tokens a second", f"{result.tokens_per_second:.2f}"),
        ("last token to mask", f"{result.focus_to_mask_seconds * 1000:.0f} ms"),
        (
            "seconds to the answer",
            f"{result.answer_seconds:.1f}, of a second question "
            f"{result.second_question_answer_seconds:.1f}; "
            f"{result.tokens} tokens",
        ),
        ("mask", f"{result.mask_pixels:,} of {result.picture[0] * result.picture[1]:,} pixels"),
    )
    return "\n".join(f"{name:<28}{value}" for name, value in rows)
