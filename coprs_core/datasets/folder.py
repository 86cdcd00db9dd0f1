"""A plain folder of photos and masks as a data set, to evaluate on and to train on.

`items.jsonl` holds a line an item, paths from the folder:
`{"photo": "a.jpg", "instruction": "the cat", "masks": ["a_cat.png"]}`. A mask is a picture of the
photo's size, white where the thing is; several things are several masks, in reading order; `[]`
where nothing fits. `"reply"` may hold a whole reply to imitate in training: a thought, and a focus
token a mask.

Without a listing, every `NAME.txt` is an instruction about `NAME.jpg` (or another picture), and
`NAME_mask.png`, or `NAME_mask_1.png` and so on, are its masks.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coprs_core.answer.compare import read_mask
from coprs_core.datasets.dataset import TARGET_COUNT_GROUPS, Dataset, Split, target_count_tag
from coprs_core.datasets.formats import IMAGE_SUFFIXES, clean_instruction
from coprs_core.errors import CoPRSError, truncate
from coprs_core.example import Example
from coprs_core.files import find_file, read_text, without_hidden
from coprs_core.parsing import parse_json
from coprs_core.photos.photo import Photo, open_photo
from coprs_core.prompts import FOCUS_TOKEN, is_well_formed

LISTING = "items.jsonl"
_SAMPLE_LINE = '{"photo": "a.jpg", "instruction": "the cat", "masks": ["a_cat.png"]}'


@dataclass(frozen=True)
class ListedExample:
    """One line of a listing, checked; `photo` and `masks` are paths."""

    photo: Path
    instruction: str
    masks: tuple[Path, ...]
    reply: str | None


def list_splits(name: str) -> tuple[str, ...]:
    """A folder is one split."""
    return ("all",)


def read_split(split: Split) -> Dataset:
    """The items of a folder."""
    lines = read_listing(split.folder, split.is_lenient)

    def item(number: int) -> Example:
        line = lines[number]
        if isinstance(line, CoPRSError):
            raise line
        photo = open_listed_photo(line.photo)
        read = [load_mask(path, photo.size, photo.orientation) for path in line.masks]
        masks = tuple(mask for mask, _ in read)
        return Example(
            photo,
            line.instruction,
            masks,
            photo.size,
            index=number,
            ignore=_merge_ignore(read),
            tags={"things": target_count_tag(len(masks))},
            reply=line.reply,
        )

    about = f"folder {split.folder.name}: {len(lines):,} items"
    return Dataset(about, len(lines), item, TARGET_COUNT_GROUPS)


def _merge_ignore(masks: list[tuple[np.ndarray, np.ndarray | None]]) -> np.ndarray | None:
    """Pixels that are void in one mask and in no other mask; None without any."""
    void = [ignore for _, ignore in masks if ignore is not None]
    if not void:
        return None
    return np.logical_or.reduce(void) & ~np.logical_or.reduce([mask for mask, _ in masks])


def read_listing(root: Path, is_lenient: bool = False) -> list[ListedExample | CoPRSError]:
    """Parse a folder's listing, or its file names without one; raises `CoPRSError` where a
    line is none, or names a file that is not there. Where `is_lenient`, the error takes the line's
    place, if any other line is right."""
    listing = find_file(root / LISTING)
    parsed: list[ListedExample | CoPRSError] = []
    for line in _parse_listing(listing) if listing.is_file() else _pair_by_name(root):
        if isinstance(line, CoPRSError) and not is_lenient:
            raise line
        parsed.append(line)
    if not parsed and listing.is_file():
        raise CoPRSError(f"{listing} holds no items: write lines such as {_SAMPLE_LINE}.")
    if not parsed:
        raise CoPRSError(f"There is no {listing}: write one line an item, such as {_SAMPLE_LINE}.")
    if isinstance(parsed[0], CoPRSError) and not any(
        isinstance(line, ListedExample) for line in parsed
    ):
        raise parsed[0]
    return parsed


def _parse_listing(listing: Path) -> Iterator[ListedExample | CoPRSError]:
    for number, text in enumerate(read_text(listing).split("\n"), 1):
        if text.strip():
            try:
                yield _parse_line(listing, number, text)
            except CoPRSError as problem:
                yield problem


def _pair_by_name(root: Path) -> Iterator[ListedExample | CoPRSError]:
    """Pair photos with the texts and masks beside them, by name."""
    files = without_hidden(root.iterdir()) if root.is_dir() else []
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    photos = {_stem(path): path for path in reversed(pictures)}  # of several the first
    masks: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        name = unicodedata.normalize("NFC", path.name)
        for match in re.finditer("[-_]mask", name):
            masks[name[: match.start()]].append(path)
    for text in files:
        if text.suffix.lower() == ".txt":
            try:
                yield _example_from_names(text, photos.get(_stem(text)), masks[_stem(text)])
            except CoPRSError as problem:
                yield problem


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", path.stem)


def _example_from_names(text: Path, photo: Path | None, masks: list[Path]) -> ListedExample:
    """The item of a text file, with photo and masks of the same stem."""
    if photo is None:
        raise CoPRSError(f"{text} has no photo beside it: {text.stem}.jpg or .png is expected.")
    instruction = clean_instruction(read_text(text).strip(), str(text))
    for mask in masks:
        if not re.search(r"_mask.*\.png$", mask.name, re.IGNORECASE):
            raise CoPRSError(
                f"{mask} is no name of a mask: {text.stem}_mask.png, or {text.stem}_mask_1.png "
                "and so on, is expected."
            )
    return ListedExample(photo, instruction, tuple(sorted(masks, key=_natural_sort_key)), None)


def _natural_sort_key(path: Path) -> list[tuple[int, str]]:
    """Sort names by the numbers in them: 2 comes before 10."""
    return [(int(n or -1), word) for word, n in re.findall(r"(\D+)(\d*)", path.name)]


def _parse_line(listing: Path, number: int, text: str) -> ListedExample:
    try:
        row = parse_json(text)
        names = [row["photo"], *row["masks"]]
        is_valid = all(isinstance(v, str) for v in (row["instruction"], *names))
        is_valid = is_valid and isinstance(row["masks"], list)
        is_valid = is_valid and isinstance(row.get("reply"), str | None)
    except (ValueError, KeyError, TypeError, RecursionError):
        is_valid = False
    if not is_valid:
        raise CoPRSError(f"Line {number} of {listing} is no item: write it like {_SAMPLE_LINE}.")
    photo, *masks = (find_file(listing.parent / name) for name in names)
    for path in (photo, *masks):
        if not os.path.isfile(path):
            raise CoPRSError(
                f"Line {number} of {listing} names {truncate(path.name)}, which is not there."
            )
    reply = row.get("reply")
    has_a_token_per_mask = reply is None or reply.count(FOCUS_TOKEN) == len(masks)
    if reply is not None and not (has_a_token_per_mask and is_well_formed(reply, len(masks))):
        raise CoPRSError(
            f"The reply in line {number} of {listing} has not the form to imitate: write "
            f"<think>…</think> and then {_describe_focus_tokens(len(masks))}, or leave it out."
        )
    instruction = clean_instruction(row["instruction"].strip(), f"line {number} of {listing}")
    return ListedExample(photo, instruction, tuple(masks), reply)


def _describe_focus_tokens(count: int) -> str:
    """Describe what must follow a thought with so many masks, for a message."""
    if not count:
        return "that nothing fits, in words"
    return f"one {FOCUS_TOKEN}" if count == 1 else f"{count} {FOCUS_TOKEN}, one a mask"


def open_listed_photo(path: Path) -> Photo:
    """A photo of a data set; raises `CoPRSError`, which names it, where it is none."""
    try:
        return open_photo(path)
    except CoPRSError as problem:
        raise CoPRSError(f"The photo {path} cannot be used. {problem}") from problem


def load_mask(
    path: Path, size: tuple[int, int], orientation: int = 1
) -> tuple[np.ndarray, np.ndarray | None]:
    """A mask file as bool [H, W] and what is void in it, as `read_mask` reads them; raises
    `CoPRSError` where it is not of the photo's size, or empty."""
    try:
        mask, void = read_mask(path, size, orientation)
    except CoPRSError as problem:
        raise CoPRSError(f"The mask {path} cannot be used. {problem}") from problem
    if not mask.any():
        raise CoPRSError(f"The mask {path} is empty: list no mask where nothing fits.")
    return mask, void
