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
from coprs_core.model.backends.attention import as_prior
from coprs_core.model.coprs import CoPRSConfig
from coprs_core.model.segmenter import Place
from coprs_core.model.vision import SAM_SIZES
from coprs_core.photos.photo import Photo, open_photo
from coprs_core.random_weights import (
    LLM_SIZES,
    POINTING,
    write_random_checkpoint,
    write_random_pointing,
)
from coprs_core.sizes import format_bytes

RANDOM_SIZES = (*LLM_SIZES, *POINTING)
PICTURE = (1024, 768)
QUESTION = "the thing that keeps the rain off"


@dataclass(frozen=True)
class Measured:
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


def benchmark(
    size: str,
    options: LoadOptions,
    tokens: int,
    folder: Path | None = None,
    picture: tuple[int, int] = PICTURE,
) -> Measured:
    """Time answers of a model of random weights.

    A model of that size (one of `RANDOM_SIZES`, with `options.sam`) is written, kept where `folder`
    is given, loaded, and answers of `tokens` tokens about pictures of (width, height) are brought
    to a mask.
    """
    is_pointing = size in POINTING
    if options.sam == "auto":
        device = choose_device(options.device)
        options = replace(options, sam=choose_sam("auto", device.type) if is_pointing else "vit_h")
    place = folder or Path(tempfile.mkdtemp(prefix="coprs-"))
    try:
        write: Any = write_random_pointing if is_pointing else write_random_checkpoint
        if is_pointing or not (place / "coprs.json").is_file():
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, spawn) as other:  # keeps its memory out of ours
                other.submit(write, place, size, options.sam).result()
        shown = f"{size}, random weights"
        if is_pointing:
            options = replace(options, sam=str(place / options.sam))
            return measure(str(place / size), shown, options, tokens, picture)
        config = CoPRSConfig.read(place / "coprs.json")
        wanted = LLM_SIZES[size]["hidden_size"], SAM_SIZES[options.sam]
        if (config.llm_width, config.vision) != wanted:
            raise CoPRSError(f"{place} holds another size: choose another --folder.")
        return measure(str(place), shown, options, tokens, picture)
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


def measure(
    name: str,
    shown: str,
    options: LoadOptions,
    tokens: int,
    picture: tuple[int, int] = PICTURE,
) -> Measured:
    """Load a model and time its answers; `shown` is what the model is called in the table.

    It writes `tokens` tokens of its own. Then the focus token, or a box, is given to it, so that
    weights which know nothing come to a mask too.
    """
    before, start = _memory(torch.device("cpu")), time.perf_counter()
    engine = Engine(load_checkpoint(name, options))
    seconds, device = time.perf_counter() - start, engine.segmenter.device
    other = 0 if device.type == "cuda" else before  # what the process held before
    loaded, peak_loading = _memory(device) - other, peak_memory(device) - other
    cold, _ = _one_answer(engine, tokens, _noise(picture, seed=0))
    photo = _noise(picture, seed=1)
    times, pixels = _one_answer(engine, tokens, photo)
    again, _ = _one_answer(engine, tokens, photo)
    held = chain(engine.model.parameters(), engine.model.buffers())
    weights = {t.data_ptr(): t.numel() * t.element_size() for t in held}
    return Measured(
        model=shown,
        sam=Path(options.sam).name,
        device=_device_name(device),
        dtype=engine.settings["dtype"],
        quantization=engine.checkpoint.quantization,
        weights=sum(weights.values()),
        load_seconds=seconds,
        memory_after_loading=loaded,
        peak_while_loading=peak_loading,
        peak_while_answering=peak_memory(device) - other,
        cold_first_token_seconds=cold.first_token,
        first_token_seconds=times.first_token,
        second_question_first_token_seconds=again.first_token,
        answer_seconds=times.whole,
        second_question_answer_seconds=again.whole,
        tokens=tokens,
        picture=picture,
        tokens_per_second=times.tokens_per_second,
        focus_to_mask_seconds=times.focus_to_mask,
        mask_pixels=pixels,
    )


@dataclass(frozen=True)
class _Times:
    """Of one answer: seconds to the first token, tokens a second, seconds from the last token to
    the mask, and of the whole."""

    first_token: float
    tokens_per_second: float
    focus_to_mask: float
    whole: float


def _noise(picture: tuple[int, int], seed: int) -> Photo:
    shape = (picture[1], picture[0], 3)
    pixels = np.random.default_rng(seed).integers(0, 255, shape, np.uint8)
    return open_photo(Image.fromarray(pixels))


def _one_answer(engine: Engine, tokens: int, photo: Photo) -> tuple[_Times, int]:
    """The times of one answer, and its mask's area."""
    device, marks = engine.segmenter.device, [time.perf_counter()]

    def mark() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter())

    answer = _focused if engine.has_focus_token else _pointed
    with engine.within_memory():
        mask = answer(engine, tokens, photo, mark)
    mark()
    start, first, last, end = marks
    rate = (tokens - 1) / max(last - first, 1e-9)
    return _Times(first - start, rate, end - last, end - start), int(mask.sum())


def _focused(engine: Engine, tokens: int, photo: Photo, mark: Callable[[], None]) -> np.ndarray:
    """An answer by the focus token; `mark` is called after the first token and after the last."""
    focus, features = engine.focus, engine.read(photo)
    reading = focus.reading(QUESTION, features)
    for i, _ in enumerate(focus.language.batch.write(reading, None, set(), tokens)):
        if i == 0:
            mark()
    mark()
    return focus.look(reading.feed([focus.focus_id])[-1:], features)[1]


def _pointed(engine: Engine, tokens: int, photo: Photo, mark: Callable[[], None]) -> np.ndarray:
    """An answer by a box, its attention observed and its heads chosen."""
    segmenter: Any = engine.segmenter
    features, language = engine.read(photo), segmenter.language
    reading = segmenter.reading(QUESTION, features)
    looks = language.looks(features.visual)
    for i, _ in enumerate(language.batch.write(reading, None, set(), tokens, looks)):
        if i == 0:
            mark()
    mark()
    seen = looks.map(range(max(0, tokens - 20), tokens), looks.heads())
    height, width = photo.size
    box = 0.3 * width, 0.2 * height, 0.7 * width, 0.8 * height
    return segmenter.draw(Place(as_prior(seen, photo.size), box=box), features)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({torch.get_num_threads()} threads)"


def table(m: Measured) -> str:
    quantized = "" if m.quantization == "none" else f", {m.quantization}"
    rows = (
        ("model", f"{m.model}, {m.sam}, {m.dtype}{quantized}"),
        ("device", m.device),
        ("weights in memory", format_bytes(m.weights)),
        (
            "load",
            f"{m.load_seconds:.1f} s, {format_bytes(m.memory_after_loading)} after, "
            f"{format_bytes(m.peak_while_loading)} at most",
        ),
        ("peak while answering", format_bytes(m.peak_while_answering)),
        (
            "seconds to the first token",
            f"{m.first_token_seconds:.2f} ({m.cold_first_token_seconds:.2f} in the first answer)",
        ),
        (
            "… of a second question",
            f"{m.second_question_first_token_seconds:.2f}, about the same picture",
        ),
        ("tokens a second", f"{m.tokens_per_second:.2f}"),
        ("last token to mask", f"{m.focus_to_mask_seconds * 1000:.0f} ms"),
        (
            "seconds to the answer",
            f"{m.answer_seconds:.1f}, of a second question {m.second_question_answer_seconds:.1f}; "
            f"{m.tokens} tokens",
        ),
        ("mask", f"{m.mask_pixels:,} of {m.picture[0] * m.picture[1]:,} pixels"),
    )
    return "\n".join(f"{name:<28}{value}" for name, value in rows)
