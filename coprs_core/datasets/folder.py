"""A plain folder of photos and masks as a data set, to evaluate on and to train on.

`items.jsonl` holds a line an item, paths from the folder:
`{"photo": "a.jpg", "instruction": "the cat", "masks": ["a_cat.png"]}`. A mask is a picture of the
photo's size, white where the thing is; several things are several masks, in reading order; `[]`
where nothing fits. `"reply"` may hold a whole reply to imitate in training: a thought, and a focus
token a mask.

Without a listing, every `NAME.txt` is an instruction about `NAME.jpg` (or another picture), and
`NAME_mask.png`, or `NAME_mask_1.png` and so on, are its masks.
"""

import glob
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from coprs_core.answer.compare import read_truth
from coprs_core.datasets.example import Dataset, Example, Place, Tag
from coprs_core.errors import CoPRSError
from coprs_core.parsing import from_json
from coprs_core.photos import Photo, open_photo
from coprs_core.prompts import FOCUS_TOKEN, check_instruction, is_well_formed

GROUPS: dict[str, tuple[str, Tag]] = {
    "one thing": ("things", "one"),
    "several": ("things", "several"),
    "nothing there": ("things", "none"),
}
LISTING = "items.jsonl"
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_FORM = '{"photo": "a.jpg", "instruction": "the cat", "masks": ["a_cat.png"]}'


@dataclass(frozen=True)
class Line:
    """One line of a listing, checked; `photo` and `masks` are paths."""

    photo: Path
    instruction: str
    masks: tuple[Path, ...]
    reply: str | None


def splits(name: str) -> tuple[str, ...]:
    """A folder is one split."""
    return ("all",)


def read(place: Place) -> Dataset:
    """The items of a folder."""
    listed = lines(place.folder)

    def item(number: int) -> Example:
        line = listed[number]
        photo = photo_of(line.photo)
        masks = tuple(mask_of(path, photo.image) for path in line.masks)
        things = "one" if len(masks) == 1 else "several" if masks else "none"
        tags: dict[str, Tag] = {"things": things}
        asked = line.instruction, masks, photo.size
        return Example(number, photo, *asked, tags=tags, reply=line.reply)

    about = f"folder {place.folder.name}: {len(listed):,} items"
    return Dataset(about, len(listed), item, GROUPS)


def lines(root: Path) -> list[Line]:
    """The lines of a folder's listing; raises `CoPRSError` where one is none, or names a file that
    is not there."""
    listing = root / LISTING
    if not listing.is_file():
        if beside := _beside(root):
            return beside
        raise CoPRSError(f"There is no {listing}: write one line an item, such as {_FORM}.")
    try:
        written = listing.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as problem:
        raise CoPRSError(f"{listing} is no UTF-8 text: write it so.") from problem
    found = [_line(listing, n, text) for n, text in enumerate(written, 1) if text.strip()]
    if not found:
        raise CoPRSError(f"{listing} holds no items: write lines such as {_FORM}.")
    return found


def _beside(root: Path) -> list[Line]:
    """Photos with their texts and masks beside them, by name."""
    pictures = (path for path in root.iterdir() if path.suffix.lower() in _PICTURES)
    photos = {path.stem: path for path in sorted(pictures, reverse=True)}  # of several the first
    found = []
    for text in sorted(root.glob("*.txt")):
        photo = photos.get(text.stem)
        if photo is None:
            raise CoPRSError(f"{text} has no photo beside it: {text.stem}.jpg or .png is expected.")
        try:
            instruction = _asked(text.read_text(encoding="utf-8-sig"), str(text))
        except UnicodeDecodeError as problem:
            raise CoPRSError(f"{text} is no UTF-8 text: write it so.") from problem
        named = root.glob(f"{glob.escape(text.stem)}[-_]mask*")
        masks = sorted(named, key=_in_order)
        for mask in masks:
            if not re.search(r"_mask.*\.png$", mask.name):
                raise CoPRSError(
                    f"{mask} is no name of a mask: {text.stem}_mask.png, or {text.stem}_mask_1.png "
                    "and so on, is expected."
                )
        found.append(Line(photo, instruction, tuple(masks), None))
    return found


def _in_order(path: Path) -> list[tuple[int, str]]:
    """What sorts names by the numbers in them: 2 comes before 10."""
    return [(int(n or -1), word) for word, n in re.findall(r"(\D+)(\d*)", path.name)]


def _line(listing: Path, number: int, text: str) -> Line:
    try:
        row = from_json(text)
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
    reply = row.get("reply")
    is_right = reply is None or reply.count(FOCUS_TOKEN) == len(masks)
    if reply is not None and not (is_right and is_well_formed(reply, len(masks))):
        raise CoPRSError(
            f"The reply in line {number} of {listing} has not the form to imitate: write "
            f"<think>…</think> and then {_tokens(len(masks))}, or leave it out."
        )
    asked = _asked(row["instruction"], f"line {number} of {listing}")
    return Line(photo, asked, tuple(masks), reply)


def _asked(text: str, where: str) -> str:
    """An instruction without the space around it."""
    try:
        return check_instruction(text.strip())
    except CoPRSError as problem:
        raise CoPRSError(f"The instruction in {where} cannot be asked. {problem}") from problem


def _tokens(count: int) -> str:
    """What follows a thought about so many things, in words."""
    if not count:
        return "that nothing fits, in words"
    return f"one {FOCUS_TOKEN}" if count == 1 else f"{count} {FOCUS_TOKEN}, one a mask"


def photo_of(path: Path) -> Photo:
    """A photo of a data set; raises `CoPRSError`, which names it, where it is none."""
    try:
        return open_photo(path)
    except CoPRSError as problem:
        raise CoPRSError(f"The photo {path} cannot be used. {problem}") from problem


def mask_of(path: Path, photo: Image.Image) -> np.ndarray:
    """A mask file as bool [H, W], as `read_truth` reads it; raises `CoPRSError` where it is not of
    the photo's size, or empty."""
    try:
        mask = read_truth(path, (photo.height, photo.width))
    except CoPRSError as problem:
        raise CoPRSError(f"The mask {path} cannot be used. {problem}") from problem
    if not mask.any():
        raise CoPRSError(f"The mask {path} is empty: list no mask where nothing fits.")
    return mask
