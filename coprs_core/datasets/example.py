"""What is evaluated and trained on: a photo, an instruction, and the true masks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError, first_line, from_os_error
from coprs_core.photos.photo import PhotoLike

Tag = str | bool
THINGS: dict[str, tuple[str, Tag]] = {
    "one thing": ("things", "one"),
    "several": ("things", "several"),
    "nothing there": ("things", "none"),
}
"""Groups of a data set whose items mean one thing, several, or none."""


def things(count: int) -> str:
    """The tag of an item that means so many things."""
    return "one" if count == 1 else "several" if count else "none"


@dataclass(frozen=True, eq=False)
class Example:
    """One item of a data set.

    Attributes:
        index: its number in the data set.
        photo: whatever `open_photo` reads; a path is opened when its turn comes.
        instruction: what to look for.
        masks: bool [H, W] each, of the photo's size: the things that are meant, in reading order,
            each of which has a focus token of its own; none where nothing fits.
        size: (H, W) of the photo.
        ignore: bool [H, W]: neither right nor wrong, where the data set marks such regions.
        tags: what kind of item it is, for the groups of a report.
        score: further measures of an answer that only this data set knows, each in [0, 1]; one
            that does not apply to an answer is left out.
        grade: how good the thought of an answer is, from 0 to 10, where the data set can tell.
        reply: a reply to imitate, where one is known.
        left_out: how many polygons of the masks could not be drawn, and are not in them.
    """

    index: int
    photo: PhotoLike = field(repr=False)
    instruction: str
    masks: tuple[np.ndarray, ...] = field(repr=False)
    size: tuple[int, int]
    ignore: np.ndarray | None = field(default=None, repr=False, kw_only=True)
    tags: dict[str, Tag] = field(default_factory=dict, kw_only=True)
    score: Callable[[Result], dict[str, bool | float]] | None = field(
        default=None, repr=False, kw_only=True
    )
    grade: Callable[[Result], float] | None = field(default=None, repr=False, kw_only=True)
    reply: str | None = field(default=None, kw_only=True)
    left_out: int = field(default=0, kw_only=True)

    @property
    def truth(self) -> np.ndarray:
        """All things together, bool [H, W]."""
        return np.logical_or.reduce([np.zeros(self.size, bool), *self.masks])


@dataclass(frozen=True)
class Unread:
    """An item of a data set that could not be read, and why, in a sentence."""

    index: int
    problem: str


@dataclass(frozen=True)
class Place:
    """Which split of which data set, the folder that it lies in, and whether single items of its
    listing may be wrong."""

    name: str
    root: Path | None
    split: str
    is_lenient: bool = False

    @property
    def folder(self) -> Path:
        """The folder, of a data set that lies on a disk."""
        assert self.root is not None
        return self.root


@dataclass(frozen=True, eq=False)
class Dataset:
    """A split of a data set, read item by item.

    Attributes:
        about: which files were read and how many items they hold, for a report.
        size: how many items; None where there is no end.
        item: number → that item, None where it is passed over.
        groups: name of a group in the report → the tag and the value that its items have.
        has_grades: whether the data set can tell how good a thought is.
        split: as it was asked for.
        has_merged_ignore: whether regions to ignore count as target in its masks already.
    """

    about: str
    size: int | None
    item: Callable[[int], Example | None] = field(repr=False)
    groups: dict[str, tuple[str, Tag]] = field(default_factory=dict)
    has_grades: bool = False
    split: str = ""
    has_merged_ignore: bool = False

    def tried(self, number: int) -> Example | Unread | None:
        """The item of that number, or why it could not be read; None where it is passed over."""
        try:
            return self.item(number)
        except CoPRSError as problem:
            return Unread(number, str(problem))
        except OSError as problem:
            return Unread(number, str(from_os_error(problem)))
        except Exception as problem:  # a library may raise anything over a broken file
            why = first_line(problem)
            return Unread(number, f"Item {number} cannot be read ({why}): correct it.")

    def examples(self, start: int, count: int) -> Iterator[Example]:
        """`count` items from number `start` on, or as many as there are."""
        stop = start + count if self.size is None else min(start + count, self.size)
        for number in range(start, stop):
            if example := self.item(number):
                yield example
