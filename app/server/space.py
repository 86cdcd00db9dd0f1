"""On a Hugging Face Space with a borrowed GPU (ZeroGPU) the work runs in another process that has
the GPU for a while."""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from app.server.model import Worker

TOKENS_PER_SECOND, READING_SECONDS, PROBE_SECONDS = 20, 10, 30
"""Assumed slow: ZeroGPU takes the GPU away when the time asked for is over, finished or not."""
MAX_SECONDS = 120


def zero_gpu_worker() -> Worker | None:
    """What wraps the work on ZeroGPU, for `ModelServer`; None elsewhere: the package `spaces` is
    installed on Spaces with hardware of their own, too."""
    is_borrowed = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    if not is_borrowed or find_spec("spaces") is None:
        return None
    spaces = import_module("spaces")

    return lambda work: spaces.GPU(duration=gpu_seconds)(work)


def gpu_seconds(work: Callable, photo, features, args: tuple) -> int:
    """For how many seconds the GPU is asked for: by the tokens that an answer may have, and whether
    the photo was read."""
    from coprs_core.answer.engine import Engine

    if work is not Engine.stream:
        return PROBE_SECONDS
    _, max_new_tokens = args
    reading = 0 if features else READING_SECONDS
    return min(MAX_SECONDS, max_new_tokens // TOKENS_PER_SECOND + reading + 5)
