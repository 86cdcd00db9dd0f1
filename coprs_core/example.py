"""One item of data: a photo, an instruction, and what is true of them, where that is known.

Batches, evaluation, training and clusters all take it; data sets give it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from coprs_core.errors import CoPRSError
from coprs_core.photos.photo import Photo, PhotoLike, open_photo

if TYPE_CHECKING:
    from coprs_core.answer.results import Result

Tag = str | bool


@dataclass(frozen=True, eq=False)
class Example:
    """A photo and an instruction.

    Attributes:
        photo: whatever `open_photo` reads, or one that is being opened; a path is opened when its
            turn comes.
        instruction: what to look for.
        masks: bool [H, W] each, of the photo's size: the targets in reading order, each of which
            has a focus token of its own; none where nothing fits.
        size: (H, W) of the photo; None where it is not known what is true of it.
        index: its number in the data set.
        name: in a batch that of its answer's folder.
        ignore: bool [H, W]: neither right nor wrong, where the data set marks such regions.
        tags: what kind of item it is, for the groups of a report.
        score: further measures of an answer that only this data set knows, each in [0, 1]; one
            that does not apply to an answer is left out.
        grade: how good the thought of an answer is, from 0 to 10, where the data set can tell.
        reply: a reply to imitate, where one is known.
        left_out: how many polygons of the masks could not be drawn, and are not in them.
        problem: why the data set could not read it, in a sentence; nothing else is known then.
    """

    photo: PhotoLike | Future[Photo] = field(repr=False)
    instruction: str
    masks: tuple[np.ndarray, ...] = field(default=(), repr=False)
    size: tuple[int, int] | None = None
    _: KW_ONLY
    index: int = 0
    name: str = ""
    ignore: np.ndarray | None = field(default=None, repr=False)
    tags: dict[str, Tag] = field(default_factory=dict)
    score: Callable[[Result], dict[str, bool | float]] | None = field(default=None, repr=False)
    grade: Callable[[Result], float] | None = field(default=None, repr=False)
    reply: str | None = None
    left_out: int = 0
    problem: str = ""

    @property
    def truth(self) -> np.ndarray:
        """All targets together, bool [H, W]."""
        assert self.size is not None, "what is true of this example is not known"
        return np.logical_or.reduce([np.zeros(self.size, bool), *self.masks])

    def load_photo(self) -> Photo:
        """Open the photo, or wait for the thread that is opening it; raises `CoPRSError` where that
        fails or the example has a `problem`."""
        if self.problem:
            raise CoPRSError(self.problem)
        return self.photo.result() if isinstance(self.photo, Future) else open_photo(self.photo)
