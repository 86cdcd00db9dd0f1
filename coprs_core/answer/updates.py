"""What an engine yields on the way to an answer."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from coprs_core.answer.results import Result, is_unfamiliar
from coprs_core.errors import CoPRSError
from coprs_core.prompts import MAX_NEW_TOKENS


@dataclass(frozen=True, eq=False)
class Update:
    """One step on the way to an answer.

    Attributes:
        stage: "reading" (the photo; before it and after it), "thinking", "focus" (the prior is
            there) or "done".
        text: the reply so far; `new`: what the last step added to it.
        prior: float32 [H, W] in [0, 1] at the photo's size, from "focus" on.
        result: the `Result`, with "done".
        seconds: time since the answer was begun.
        stage_seconds: the time that each finished stage took, by name.
        rate: tokens a second of the thought so far; 0 before it.
        photo_reused: whether the photo had been read before.
        distance: how unlike the pictures that the model knows the photo is, from the second
            "reading" on; over 1 it is unfamiliar, None where the model cannot tell.
    """

    stage: str
    text: str = ""
    new: str = ""
    prior: np.ndarray | None = field(default=None, repr=False)
    result: Result | None = None
    seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    rate: float = 0.0
    photo_reused: bool = False
    distance: float | None = None

    @property
    def unfamiliar(self) -> bool | None:
        """Whether the photo is unlike the pictures that the model knows."""
        return is_unfamiliar(self.distance)


def check_max_new_tokens(limit: int) -> int:
    """Return a limit of a reply unchanged; raises `CoPRSError` where it is no whole number from 1
    to 4096."""
    if not isinstance(limit, int) or not 1 <= limit <= MAX_NEW_TOKENS:
        raise CoPRSError(
            "max_new_tokens is {limit!r} and a whole number from 1 to {most} was expected: "
            "leave it out.",
            limit=limit,
            most=MAX_NEW_TOKENS,
        )
    return limit


def last_result(updates: Iterable[Update]) -> Result:
    """The result at the end of a stream of updates."""
    result = None
    for update in updates:
        result = update.result
    if result is None:
        raise RuntimeError("the stream ended without a result")
    return result
