"""The file formats of data sets: images, polygons, run lengths, pickles and Parquet tables."""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coprs_core.datasets.unpickler import PlainUnpickler
from coprs_core.errors import CoPRSError, first_line, truncate
from coprs_core.files import check_no_mojibake, find_file, read_text, repair_cp1252, without_hidden
from coprs_core.machine import as_user_error
from coprs_core.masks import decode_rle
from coprs_core.parsing import parse_json
from coprs_core.photos.orientation import ambiguous_frame_error, to_stored_array, to_stored_size
from coprs_core.photos.photo import Photo, open_photo
from coprs_core.prompts import check_instruction

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_MAX_PERIMETER, _MAX_COORDINATE = 1_000_000, 100_000
"""Pixels that the border of a polygon may be long, and that a corner may lie away: pycocotools sets
aside memory for every pixel of the way, and crashes where that is more than a C int counts."""


def open_annotated_image(
    source: Path | bytes,
    name: str = "",
    mask_size: tuple[int, int] | None = None,
    extent: tuple[float, float] = (0, 0),
) -> Image.Image:
    """Open an image of a data set in the frame of its masks, RGB.

    The data sets of the field ignore EXIF: masks lie on the pixels as stored, so these are
    returned, unless the masks fit the rotated image alone.

    Args:
        source: a file, or its bytes.
        name: of an image that is no file, for messages.
        mask_size: (height, width) of the image that the masks were made for, where that is known.
        extent: how far down and how far right the masks go, in pixels.

    Raises `CoPRSError` where it is missing or broken, of another size than `mask_size`, or rotated
    by EXIF in a way that leaves open which frame the masks were made for.
    """
    where = str(source) if isinstance(source, Path) else name
    readable = source if isinstance(source, bytes) else find_file(source)
    if isinstance(readable, Path) and not readable.is_file():
        raise CoPRSError(f"The picture {where} is not there: copy the data set again, or its part.")
    try:
        photo = open_photo(readable)
    except CoPRSError as problem:
        raise CoPRSError(f"The picture {where} cannot be read. {problem}") from problem
    is_rotated = _fits_exif_rotation(photo, f"The mask of {where}", mask_size, extent)
    if photo.orientation == 1 or is_rotated:
        return photo.image
    return Image.fromarray(to_stored_array(np.asarray(photo.image), photo.orientation))


def _fits_exif_rotation(
    photo: Photo, what: str, mask_size: tuple[int, int] | None, extent: tuple[float, float]
) -> bool:
    """Whether masks fit an image as its EXIF tag rotates it, and not as it is stored."""
    rotated, stored = photo.size, to_stored_size(photo.size, photo.orientation)
    if mask_size is None and rotated != stored and not _is_inside(extent, stored):
        mask_size = rotated if _is_inside(extent, rotated) else None
    if mask_size not in (None, stored, rotated):
        raise CoPRSError(
            f"{what} is of a picture of {mask_size[1]}×{mask_size[0]} pixels, and it has "
            f"{stored[1]}×{stored[0]}: copy the data set again."
        )
    if photo.orientation != 1 and rotated == stored:
        raise ambiguous_frame_error(what, photo.orientation)
    return mask_size == rotated != stored


def _is_inside(extent: tuple[float, float], size: tuple[int, int]) -> bool:
    return extent[0] <= size[0] and extent[1] <= size[1]


def declared_size(values: Any) -> tuple[int, int] | None:
    """(height, width) that values declare as whole numbers; None where they do not."""
    try:
        size = values["height"], values["width"]
    except (LookupError, TypeError):
        return None
    return size if all(type(v) is int for v in size) else None


def drawable_polygons(segmentation: Any) -> tuple[list[list[float]], int]:
    """The polygons that can be drawn of one ([x, y, x, y …]) or a list of them, and the number of
    those that cannot: under three corners, no numbers, or far outside any picture."""
    is_list = isinstance(segmentation, list | tuple) and len(segmentation) > 0
    if not is_list:
        return [], 0
    is_many = any(isinstance(part, list | tuple) for part in segmentation)
    many = segmentation if is_many else [segmentation]
    drawable = [numbers for polygon in many if (numbers := _parse_polygon(polygon))]
    return drawable, len(many) - len(drawable)


def _parse_polygon(polygon: Any) -> list[float] | None:
    """The numbers of a polygon as floats; None where it cannot be drawn."""
    if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
        return None
    try:
        numbers = [float(v) for v in polygon]
    except (TypeError, ValueError, OverflowError):
        return None
    corners = np.array(numbers).reshape(-1, 2)
    return numbers if is_drawable(corners) else None


def is_drawable(corners: np.ndarray) -> bool:
    """Whether corners float64 [N, 2] are numbers near a picture, and the way along them is not
    endless."""
    if not (np.abs(corners) <= _MAX_COORDINATE).all():  # neither is NaN
        return False
    perimeter = np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum()
    return bool(perimeter <= _MAX_PERIMETER)


def polygon_extent(segmentation: Any) -> tuple[float, float]:
    """(bottom, right) of the polygons of a segmentation, in whole pixels."""
    drawable, _ = drawable_polygons(segmentation)
    corners = [np.array(polygon).reshape(-1, 2).max(axis=0) for polygon in drawable]
    right, down = np.max([*corners, (0.0, 0.0)], axis=0)
    return math.floor(down), math.floor(right)


def decode_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """COCO's segmentations as bool [H, W]: polygons ([x, y, x, y …], one or a list of them; those
    that cannot be drawn are left out), or run lengths, compressed or not.

    Polygons are filled by pycocotools (https://cocodataset.org/#format-data). Raises `CoPRSError`
    where it is none of these.
    """
    height, width = size
    try:
        if isinstance(segmentation, dict):
            if tuple(segmentation["size"]) != size:
                raise ValueError(f"it is of size {truncate(segmentation['size'])}")
            return decode_rle(segmentation)
        coco, (polygons, _) = _import_pycocotools(), drawable_polygons(segmentation)
        if not polygons:
            raise ValueError("a polygon has three points at least, near the picture")
        return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)
    except CoPRSError:
        raise
    except Exception as problem:  # a library in C raises anything over such values
        raise CoPRSError(
            f"The segmentation of {where} is neither polygons nor run lengths of a picture of "
            f"{width}×{height} ({first_line(problem)}): correct it."
        ) from problem


def _import_pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ModuleNotFoundError as problem:
        raise CoPRSError(missing_library_message("pycocotools")) from problem
    return mask


def clean_instruction(text: str, where: str) -> str:
    """Check and repair an instruction of a data set; raises `CoPRSError`, which names the place,
    where a model cannot be asked it or it was read in the wrong encoding."""
    try:
        if not isinstance(text, str):
            raise CoPRSError(f"It is {truncate(text, 40)} and text was expected: correct it.")
        text = check_no_mojibake(repair_cp1252(text, "It"), "It")
        return check_instruction(text)
    except CoPRSError as problem:
        raise CoPRSError(f"The instruction in {where} cannot be asked. {problem}") from problem


def read_json(path: Path) -> Any:
    """The values of a file of JSON, as `read_text` reads it."""
    return parse_json(read_text(path))


def load_plain_pickle(path: Path) -> Any:
    """The values of a pickle that holds plain ones alone: lists, dictionaries, text, numbers.

    Raises `CoPRSError` where it asks for anything else: to read that would be to run it.
    """
    with as_user_error(f"{path} is no pickle of plain values", file=path):
        return PlainUnpickler(path.read_bytes()).load()


class ParquetTable:
    """The rows of Parquet files, read one group of rows at a time; raises `CoPRSError` where one is
    none, or of "…-00000-of-00002" one is missing."""

    def __init__(self, files: list[Path]):
        parquet = _import_parquet()
        _check_no_shard_missing(files)
        self._files = []
        for path in files:
            with as_user_error(f"{path} is no Parquet file", file=path):
                self._files.append(parquet.ParquetFile(path))
        with as_user_error(f"{files[0]} is no Parquet file"):
            self.columns = set(self._files[0].schema_arrow.names)
        self._groups = [
            (file, group, file.metadata.row_group(group).num_rows)
            for file in self._files
            for group in range(file.num_row_groups)
        ]
        # rows are read in order: the group at hand is enough, and a group may hold many photos
        self._read_group = lru_cache(1)(self._read)

    def __len__(self) -> int:
        return sum(rows for *_, rows in self._groups)

    def column(self, name: str) -> Iterator[Any]:
        """One column from first to last, the others unread."""
        for file in self._files:
            for batch in file.iter_batches(columns=[name]):
                yield from batch.column(0).to_pylist()

    def row(self, number: int) -> dict[str, Any]:
        """One row."""
        for i, (*_, rows) in enumerate(self._groups):
            if number < rows:
                return self._read_group(i).slice(number, 1).to_pylist()[0]
            number -= rows
        raise IndexError(number)

    def _read(self, i: int) -> Any:
        file, group, _ = self._groups[i]
        return file.read_row_group(group)


def _check_no_shard_missing(files: list[Path]) -> None:
    parts = [match for path in files if (match := re.search(r"-(\d{5})-of-(\d{5})", path.name))]
    present, totals = {part[1] for part in parts}, {int(part[2]) for part in parts}
    if parts and len(present) < max(totals):
        raise CoPRSError(
            f"{files[0].parent} holds {len(present)} of the {max(totals)} files of this split: "
            "copy the others, too."
        )


def _import_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as problem:
        raise CoPRSError(missing_library_message("pyarrow")) from problem
    return parquet


def missing_library_message(library: str) -> str:
    """The message for a library of data sets that is not installed."""
    return (
        f"This data set needs {library}, which is not installed: "
        'pip install -e ".[data]" in the folder of CoPRS.'
    )


def missing_files_error(what: str, searched: list[Path], root: Path) -> CoPRSError:
    """The error for a wrong layout: what was looked for, and what is there."""
    there = [path.name for path in without_hidden(root.iterdir())] if root.is_dir() else []
    present = ", ".join(there[:8]) + (" …" if len(there) > 8 else "")
    paths = " or ".join(str(path) for path in searched)
    return CoPRSError(
        f"There is no {what}: looked for {paths}; {root} holds {present or 'nothing'}: give the "
        "folder that holds it with --root."
    )
