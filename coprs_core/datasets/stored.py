"""Pictures, polygons, run lengths, pickles and tables, as data sets store them."""

import io
import pickle
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coprs_core.errors import CoPRSError
from coprs_core.machine import reading

_PLAIN = {("builtins", name) for name in ("set", "frozenset", "bytearray", "complex")}
_ARRAYS = {  # numbers of NumPy, which some writers left among the plain ones
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
}


def picture(source: Path | bytes, name: str = "") -> Image.Image:
    """A picture as it is stored, RGB: masks of data sets lie on the stored pixels, so that no EXIF
    tag turns it. Raises `CoPRSError` where it is not there or is none."""
    where = str(source) if isinstance(source, Path) else name
    if isinstance(source, Path) and not source.is_file():
        raise CoPRSError(f"The picture {where} is not there: copy the data set again, or its part.")
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    with reading(f"The picture {where} cannot be read"), Image.open(opened) as image:
        return Image.fromarray(np.asarray(image.convert("RGB")))


def mask_of(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """COCO's segmentations as bool [H, W]: polygons ([x, y, x, y …], one or a list of them), or run
    lengths, compressed or not.

    Filled by pycocotools (https://cocodataset.org/#format-data). Raises `CoPRSError` where it is
    none of these.
    """
    try:
        from pycocotools import mask as coco
    except ModuleNotFoundError as problem:
        raise CoPRSError(needed("pycocotools")) from problem
    height, width = size
    try:
        if isinstance(segmentation, dict):
            rle, counts = dict(segmentation), segmentation["counts"]
            if tuple(rle["size"]) != size:
                raise ValueError(f"it is of size {rle['size']}")
            if isinstance(counts, list):
                rle = coco.frPyObjects(rle, height, width)
            elif isinstance(counts, str):
                rle["counts"] = counts.encode("ascii")
            return coco.decode(rle).astype(bool)
        many = segmentation if isinstance(segmentation[0], list | tuple) else [segmentation]
        polygons = [[float(v) for v in polygon] for polygon in many]
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            raise ValueError("a polygon has three points at least")
        return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)
    except Exception as problem:  # a library in C raises anything over such values
        raise CoPRSError(
            f"The segmentation of {where} is neither polygons nor run lengths of a picture of "
            f"{width}×{height} ({problem}): correct it."
        ) from problem


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN | _ARRAYS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def plain_pickle(path: Path) -> Any:
    """The values of a pickle that holds plain ones alone: lists, dictionaries, text, numbers.

    Raises `CoPRSError` where it asks for anything else: to read that would be to run it.
    """
    with reading(f"{path} is no pickle of plain values"), path.open("rb") as file:
        return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()


class Table:
    """The rows of Parquet files, read one group of rows at a time; raises `CoPRSError` where one is
    none, or of "…-00000-of-00002" one is missing."""

    def __init__(self, files: list[Path]):
        parquet = _parquet()
        _check_whole(files)
        with reading(f"{files[0]} is no Parquet file"):
            self._files = [parquet.ParquetFile(path) for path in files]
            self.columns = set(self._files[0].schema_arrow.names)
        self._groups = [
            (file, group, file.metadata.row_group(group).num_rows)
            for file in self._files
            for group in range(file.num_row_groups)
        ]
        self._rows = lru_cache(1)(self._read)

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
                return self._rows(i).slice(number, 1).to_pylist()[0]
            number -= rows
        raise IndexError(number)

    def _read(self, i: int) -> Any:
        file, group, _ = self._groups[i]
        return file.read_row_group(group)


def _check_whole(files: list[Path]) -> None:
    parts = [match for path in files if (match := re.search(r"-(\d{5})-of-(\d{5})", path.name))]
    there, whole = {part[1] for part in parts}, {int(part[2]) for part in parts}
    if parts and len(there) < max(whole):
        raise CoPRSError(
            f"{files[0].parent} holds {len(there)} of the {max(whole)} files of this split: copy "
            "the others, too."
        )


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as problem:
        raise CoPRSError(needed("pyarrow")) from problem
    return parquet


def needed(library: str) -> str:
    """What to say where a library of data sets is not installed."""
    return (
        f"This data set needs {library}, which is not installed: "
        "pip install -r coprs_core/datasets/requirements.txt."
    )


def nothing_found(what: str, looked: list[Path], root: Path) -> CoPRSError:
    """A wrong layout: what was looked for, and what is there."""
    there = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    found = ", ".join(there[:8]) + (" …" if len(there) > 8 else "")
    wanted = " or ".join(str(path) for path in looked)
    return CoPRSError(
        f"There is no {what}: looked for {wanted}; {root} holds {found or 'nothing'}: give the "
        "folder that holds it with --root."
    )
