"""ReasonSeg: instructions that take a thought (Lai et al., LISA, 2024).

Two layouts are read: LISA's folders (`val/*.jpg` with `*.json`), and the tables of
`Ricky06662/ReasonSeg_val` and `_test`. A picture's first text is its instruction, as there. Regions
to ignore are kept apart in the former; the latter counts them as target.
"""

from pathlib import Path
from typing import Any

import numpy as np

from coprs_core.datasets.dataset import Dataset, Split
from coprs_core.datasets.formats import (
    IMAGE_SUFFIXES,
    ParquetTable,
    clean_instruction,
    missing_files_error,
    open_annotated_image,
)
from coprs_core.datasets.labelme import image_size_and_extent, rasterize_shapes
from coprs_core.errors import CoPRSError
from coprs_core.example import Example, Tag
from coprs_core.files import (
    decode_text,
    find_file,
    is_git_lfs_pointer,
    repair_cp1252,
    without_hidden,
)
from coprs_core.machine import COPY_AGAIN_HINT, as_user_error
from coprs_core.parsing import parse_json

GROUPS: dict[str, tuple[str, Tag]] = {
    "short query": ("long", False),
    "long query": ("long", True),
}


def list_splits(name: str) -> tuple[str, ...]:
    """200, 779 and 239 pictures."""
    return "val", "test", "train"


def read_split(split: Split) -> Dataset:
    """The items of a split, one a picture."""
    root, name = split.folder, split.name
    folders = [root / name, root / "ReasonSeg" / name]
    for folder in folders:
        if files := without_hidden(folder.glob("*.json")):
            about = f"reasonseg {name}, LISA's folder: {len(files):,} items"
            return Dataset(about, len(files), lambda i: _load_annotated(files[i], i), GROUPS)
    tables = [root / f"ReasonSeg_{name}", *([root] if name in root.name else [])]
    for folder in tables:
        # each of the two repositories calls its one split "test"
        if files := without_hidden(folder.glob("data/*.parquet")) or without_hidden(
            folder.glob("*.parquet")
        ):
            return _read_parquet(name, files)
    raise missing_files_error(f"ReasonSeg, split {name}", [*folders, *tables[:1]], root)


def _read_parquet(split: str, files: list[Path]) -> Dataset:
    table = ParquetTable(files)
    if missing := {"image", "text", "mask"} - table.columns:
        raise CoPRSError(
            f"{files[0]} has no column {', '.join(sorted(missing))}: it is not of ReasonSeg."
        )
    about = f"reasonseg {split}, table: {len(table):,} items; ignore counts as target"
    return Dataset(about, len(table), lambda i: _load_row(table, i), has_merged_ignore=True)


def _load_annotated(path: Path, number: int) -> Example:
    annotation = _read_annotation(path)
    fault = f"{path} is not in LISA's layout, with text, shapes and is_sentence"
    helps = f"correct it, or {COPY_AGAIN_HINT}"
    with as_user_error(fault, helps):
        shapes = annotation["shapes"]
        size_in_file, extent = image_size_and_extent(annotation, shapes)
    image = open_annotated_image(_find_photo(path), mask_size=size_in_file, extent=extent)
    size = image.height, image.width
    with as_user_error(fault, helps):
        texts = annotation["text"]
        text = texts if isinstance(texts, str) else texts[0]
        target, ignore, left_out = rasterize_shapes(shapes, size, str(path))
        tags: dict[str, Tag] = {"long": bool(annotation["is_sentence"])}
    masks = (target,) if target.any() else ()
    question = clean_instruction(text, str(path))
    return Example(
        image,
        question,
        masks,
        size,
        index=number,
        ignore=ignore,
        tags=tags,
        left_out=left_out,
    )


def _find_photo(path: Path) -> Path:
    """The photo beside an annotation; without any, the path where it should be."""
    beside = [find_file(path.with_suffix(ending)) for ending in IMAGE_SUFFIXES]
    return next((photo for photo in beside if photo.is_file()), beside[0])


def _read_annotation(path: Path) -> dict[str, Any]:
    stored = path.read_bytes()
    try:
        text = decode_text(stored, str(path))
    except CoPRSError:  # some of the published files are in cp1252
        if is_git_lfs_pointer(path):
            raise
        text = repair_cp1252(stored.decode("utf-8", "surrogateescape"), str(path))
    try:
        return parse_json(text)
    except ValueError as problem:
        raise CoPRSError(f"{path} is no JSON: copy it again from its source.") from problem


def _load_row(table: ParquetTable, number: int) -> Example:
    where = f"of row {number}"
    with as_user_error(f"Row {number} is not in the layout of the data set"):
        row = table.row(number)
        mask = np.asarray(row["mask"], bool)
        extent = mask.shape if mask.ndim == 2 else (0, 0)
        image = open_annotated_image(row["image"]["bytes"], where, extent=extent)
    if mask.shape != (image.height, image.width):
        raise CoPRSError(
            f"The mask {where} is {list(mask.shape)} and its picture {image.height}×{image.width}: "
            "copy the data set again."
        )
    masks = (mask,) if mask.any() else ()
    return Example(
        image, clean_instruction(row["text"], f"row {number}"), masks, mask.shape, index=number
    )
