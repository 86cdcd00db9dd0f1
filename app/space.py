"""On a Hugging Face Space with a borrowed GPU (ZeroGPU) the work runs in another process that has the GPU for a while."""

from collections.abc import Callable
from importlib.util import find_spec

from coprs_core.answer.engine import Engine

TOKENS_PER_SECOND, LOOKING_SECONDS, PROBE_SECONDS = 20, 10, 30
MOST_SECONDS = 120


def borrowed_gpu() -> Callable[[Callable], Callable] | None:
    """What wraps the work where the package `spaces` is installed, for `Shelf(border=…)`; None anywhere else."""
    if find_spec("spaces") is None:
        return None
    import spaces

    return lambda work: spaces.GPU(duration=seconds_needed)(work)


def seconds_needed(work: Callable, photo, features, args: tuple) -> int:
    """For how many seconds the GPU is asked for: by the tokens that an answer may have, and whether the photo was read before."""
    if work is not Engine.stream:
        return PROBE_SECONDS
    _, most_tokens = args
    return min(MOST_SECONDS, most_tokens // TOKENS_PER_SECOND + (0 if features else LOOKING_SECONDS) + 5)
