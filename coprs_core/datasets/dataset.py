"""A split of a data set, read example by example."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from coprs_core.errors import CoPRSError, first_line, from_os_error
from coprs_core.example import Example, Tag

TARGET_COUNT_GROUPS: dict[str, tuple[str, Tag]] = {
    "one thing": ("things", "one"),
    "several": ("things", "several"),
    "nothing there": ("things", "none"),
}
"""Groups of a data set whose instructions have one target, several, or none."""


def target_count_tag(count: int) -> str:
    """The tag of an item with so many targets."""
    return "one" if count == 1 else "several" if count else "none"


@dataclass(frozen=True)
class Split:
    """Which split to read: data set and split by name, its folder, and whether single items of its
    listing may be wrong."""

    dataset: str
    name: str
    root: Path | None
    is_lenient: bool = False

    @property
    def folder(self) -> Path:
        """Where a data set on a disk lies; drawn ones have no folder."""
        assert self.root is not None
        return self.root


@dataclass(frozen=True, eq=False)
class Dataset:
    """A split of a data set, read item by item.

    Attributes:
        about: which files were read and how many items they hold, for a report.
        num_items: how many there are; None where there is no end.
        item: number → that item, None where it is passed over.
        groups: name of a group in the report → the tag and the value that its items have.
        has_grades: whether the data set can tell how good a thought is.
        split: its name.
        has_merged_ignore: whether regions to ignore count as target in its masks already.
    """

    about: str
    num_items: int | None
    item: Callable[[int], Example | None] = field(repr=False)
    groups: dict[str, tuple[str, Tag]] = field(default_factory=dict)
    has_grades: bool = False
    split: str = ""
    has_merged_ignore: bool = False

    def __len__(self) -> int:
        """How many items; raises `TypeError` where there is no end."""
        if self.num_items is None:
            raise TypeError(f"{self.about} has no end")
        return self.num_items

    def __getitem__(self, number: int) -> Example:
        """The item of that number; raises `IndexError` where it is passed over."""
        if (example := self.item(number)) is None:
            raise IndexError(number)
        return example

    def try_read(self, number: int) -> Example | None:
        """The item of that number; where it cannot be read, one that has its `problem` alone; None
        where it is passed over."""
        try:
            return self.item(number)
        except CoPRSError as problem:
            message = str(problem)
        except OSError as problem:
            message = str(from_os_error(problem))
        except Exception as problem:  # a library may raise anything over a broken file
            message = f"Item {number} cannot be read ({first_line(problem)}): correct it."
        return Example(None, "", index=number, problem=message)

    def examples(self, start: int, count: int) -> Iterator[Example]:
        """`count` items from number `start` on, or as many as there are."""
        stop = start + count if self.num_items is None else min(start + count, self.num_items)
        for number in range(start, stop):
            if example := self.item(number):
                yield example
