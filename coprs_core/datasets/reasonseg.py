"""ReasonSeg: instructions that take a thought (Lai et al., LISA, 2024).

Two layouts are read: LISA's folders (`val/*.jpg` with `*.json`), and the tables of
`Ricky06662/ReasonSeg_val` and `_test`. A picture's first text is its instruction, as there. Regions
to ignore are kept apart in the former; the latter counts them as target.
"""

from pathlib import Path
from typing import Any

import numpy as np

from coprs_core.datasets.example import Dataset, Example, Place, Tag
from coprs_core.datasets.stored import Table, needed, nothing_found, picture
from coprs_core.errors import CoPRSError
from coprs_core.machine import reading
from coprs_core.parsing import from_json
from coprs_core.prompts import check_instruction

GROUPS: dict[str, tuple[str, Tag]] = {
    "short query": ("long", False),
    "long query": ("long", True),
}


def splits(name: str) -> tuple[str, ...]:
    """200, 779 and 239 pictures."""
    return "val", "test", "train"


def read(place: Place) -> Dataset:
    """The items of a split, one a picture."""
    root, split = place.folder, place.split
    folders = [root / split, root / "ReasonSeg" / split]
    for folder in folders:
        if files := sorted(folder.glob("*.json")):
            about = f"reasonseg {split}, LISA's folder: {len(files):,} items"
            return Dataset(about, len(files), lambda i: _item(files[i], i), GROUPS)
    tables = [root / f"ReasonSeg_{split}", *([root] if split in root.name else [])]
    for folder in tables:
        # each of the two repositories calls its one split "test"
        if files := sorted(folder.glob("data/*.parquet")) or sorted(folder.glob("*.parquet")):
            return _from_table(split, files)
    raise nothing_found(f"ReasonSeg, split {split}", [*folders, *tables[:1]], root)


def _from_table(split: str, files: list[Path]) -> Dataset:
    table = Table(files)
    if missing := {"image", "text", "mask"} - table.columns:
        raise CoPRSError(
            f"{files[0]} has no column {', '.join(sorted(missing))}: it is not of ReasonSeg."
        )
    about = f"reasonseg {split}, table: {len(table):,} items; ignore counts as target"
    return Dataset(about, len(table), lambda i: _row(table, i), has_merged_ignore=True)


def _item(path: Path, number: int) -> Example:
    written = _annotation(path)
    image = picture(path.with_suffix(".jpg"))
    with reading(f"{path} is not in LISA's layout, with text, shapes and is_sentence"):
        texts, shapes = written["text"], written["shapes"]
        text = texts if isinstance(texts, str) else texts[0]
        target, ignore = _filled(shapes, image.size)
        tags: dict[str, Tag] = {"long": bool(written["is_sentence"])}
    masks = (target,) if target.any() else ()
    size = image.height, image.width
    return Example(number, image, check_instruction(text), masks, size, ignore=ignore, tags=tags)


def _annotation(path: Path) -> dict[str, Any]:
    stored = path.read_bytes()
    try:
        try:
            text = stored.decode("utf-8")
        except UnicodeDecodeError:  # some of the published files are
            text = stored.decode("cp1252")
        return from_json(text)
    except ValueError as problem:
        raise CoPRSError(f"{path} is no JSON: copy it again from its source.") from problem


def _filled(shapes: list[dict], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Target and regions to ignore, bool [H, W]. As LISA does, with the same library: large shapes
    first, whole pixels, borders included; "flag" shapes mean nothing."""
    try:
        import cv2
    except ModuleNotFoundError as problem:
        raise CoPRSError(needed("opencv-python-headless")) from problem
    drawn = []
    for shape in shapes:
        label = shape["label"].lower()
        if label == "flag":
            continue
        points = np.array(shape["points"], np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise ValueError("a shape has points [x, y]")
        mask = np.zeros((size[1], size[0]), np.uint8)
        corners = [points.astype(np.int32)]
        cv2.polylines(mask, corners, True, (1,), 1)
        cv2.fillPoly(mask, corners, (1,))
        drawn.append((mask > 0, "ignore" in label))
    target, ignore = np.zeros((2, size[1], size[0]), bool)
    for i in np.argsort([int(mask.sum()) for mask, _ in drawn])[::-1]:
        mask, is_ignored = drawn[i]
        target[mask], ignore[mask] = not is_ignored, is_ignored
    return target, ignore


def _row(table: Table, number: int) -> Example:
    where = f"of row {number}"
    with reading(f"Row {number} is not in the layout of the data set"):
        row = table.row(number)
        image = picture(row["image"]["bytes"], where)
        mask = np.asarray(row["mask"], bool)
    if mask.shape != (image.height, image.width):
        raise CoPRSError(
            f"The mask {where} is {list(mask.shape)} and its picture {image.height}×{image.width}: "
            "copy the data set again."
        )
    masks = (mask,) if mask.any() else ()
    return Example(number, image, check_instruction(row["text"]), masks, mask.shape)
