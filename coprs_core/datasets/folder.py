"""A plain folder of photos and masks as a data set, to evaluate on and to train on.

`items.jsonl` holds a line an item, paths from the folder:
`{"photo": "a.jpg", "instruction": "the cat", "masks": ["a_cat.png"]}`. A mask is a picture of the
photo's size, white where the thing is; several things are several masks, in reading order; `[]`
where nothing fits. `"reply"` may hold a reply to imitate in training.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from coprs_core.datasets.example import Example, Tag
from coprs_core.errors import CoPRSError
from coprs_core.photos import open_photo
from coprs_core.prompts import check_instruction

SPLITS = ("all",)
GROUPS = {
    "one thing": ("things", "one"),
    "several": ("things", "several"),
    "nothing there": ("things", "none"),
}
LISTING = "items.jsonl"
_FORM = '{"photo": "a.jpg", "instruction": "the cat", "masks": ["a_cat.png"]}'


@dataclass(frozen=True)
class Line:
    """One line of a listing, checked; `photo` and `masks` are paths."""

    photo: Path
    instruction: str
    masks: tuple[Path, ...]
    reply: str | None


def read(root: Path | None, split: str, start: int, count: int) -> Iterator[Example]:
    """`count` items from number `start` on; the true mask is that of all things together."""
    if root is None:
        raise CoPRSError("The data set folder lies on a disk: give it with --root.")
    for i, line in enumerate(lines(root)[start : start + count], start=start):
        photo = open_photo(line.photo).image
        masks = [mask_of(path, photo) for path in line.masks]
        truth = np.logical_or.reduce([np.zeros(photo.size[::-1], bool), *masks])
        tags: dict[str, Tag] = {
            "things": "one" if len(masks) == 1 else "several" if masks else "none"
        }
        yield Example(i, line.photo, line.instruction, truth, tags, things=len(masks))


def lines(root: Path) -> list[Line]:
    """The lines of a folder's listing; raises `CoPRSError` where one is none, or names a file that
    is not there."""
    listing = root / LISTING
    if not listing.is_file():
        raise CoPRSError(f"There is no {listing}: write one line an item, such as {_FORM}.")
    try:
        written = listing.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as problem:
        raise CoPRSError(f"{listing} is no UTF-8 text: write it so.") from problem
    found = [_line(listing, n, text) for n, text in enumerate(written, 1) if text.strip()]
    if not found:
        raise CoPRSError(f"{listing} holds no items: write lines such as {_FORM}.")
    return found


def _line(listing: Path, number: int, text: str) -> Line:
    try:
        row = json.loads(text)
        names = [row["photo"], *row["masks"]]
        is_one = all(isinstance(v, str) for v in (row["instruction"], *names))
        is_one = is_one and isinstance(row["masks"], list)
        is_one = is_one and isinstance(row.get("reply"), str | None)
    except (ValueError, KeyError, TypeError):
        is_one = False
    if not is_one:
        raise CoPRSError(f"Line {number} of {listing} is no item: write it like {_FORM}.")
    photo, *masks = (listing.parent / name for name in names)
    for path in (photo, *masks):
        if not path.is_file():
            raise CoPRSError(f"Line {number} of {listing} names {path.name}, which is not there.")
    return Line(photo, check_instruction(row["instruction"]), tuple(masks), row.get("reply"))


def mask_of(path: Path, photo: Image.Image) -> np.ndarray:
    """A mask file as bool [H, W]; raises `CoPRSError` where it is not of the photo's size."""
    mask = open_photo(path).image.convert("L")
    if mask.size != photo.size:
        raise CoPRSError(
            f"The mask {path} is {mask.width}×{mask.height} and its photo "
            f"{photo.width}×{photo.height}: give them one size."
        )
    return np.asarray(mask) >= 128
