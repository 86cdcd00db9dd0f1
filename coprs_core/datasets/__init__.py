"""Data sets to evaluate on, one file each.

A reader's file holds `SPLITS`, `GROUPS` (see `Dataset`) and `read(root, split, start, count)`,
which yields `Example`s. Its name here makes it a choice of `evaluate --data`.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coprs_core.datasets.example import Dataset

DATASETS = ("scenes", "folder")


def open_dataset(name: str, root: Path | None = None, split: str = "test") -> "Dataset":
    """A data set by name; raises `CoPRSError` where it has no such split."""
    from coprs_core.datasets.example import Dataset
    from coprs_core.errors import CoPRSError

    reader = import_module(f"{__name__}.{name}")
    if split not in reader.SPLITS:
        splits = ", ".join(reader.SPLITS)
        raise CoPRSError(f"The data set {name} has no split {split!r}: choose {splits}.")
    return Dataset(lambda start, count: reader.read(root, split, start, count), dict(reader.GROUPS))
