"""What is evaluated on: a photo, an instruction, and the true mask."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from coprs_core.answer.results import Result
from coprs_core.photos import PhotoLike

Tag = str | bool


@dataclass(frozen=True, eq=False)
class Example:
    """One item of a data set.

    Attributes:
        index: its number in the data set.
        photo: whatever `open_photo` reads; a path is opened when its turn comes.
        instruction: what to look for.
        truth: the true mask, bool [H, W] of the photo's size; empty where nothing fits.
        things: how many things are meant, each of which has a focus token of its own.
        tags: what kind of item it is, for the groups of a report.
        score: further measures of an answer that only this data set knows, each in [0, 1]; one
            that does not apply to an answer is left out.
    """

    index: int
    photo: PhotoLike = field(repr=False)
    instruction: str
    truth: np.ndarray = field(repr=False)
    tags: dict[str, Tag] = field(default_factory=dict)
    things: int = field(default=1, kw_only=True)
    score: Callable[[Result], dict[str, bool | float]] | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A split of a data set.

    Attributes:
        examples: (number of the first, how many) → that many examples.
        groups: name of a group in the report → the tag and the value that its items have.
    """

    examples: Callable[[int, int], Iterator[Example]]
    groups: dict[str, tuple[str, Tag]] = field(default_factory=dict)
