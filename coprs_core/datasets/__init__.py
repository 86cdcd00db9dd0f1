"""Data sets to evaluate and to train on, one file each.

A reader's file holds `list_splits(name)`, the first of which is the usual one, and
`read_split(split)`, which gives a `Dataset`. Its name in `DATASETS` makes it a choice of `--data`.
"""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coprs_core.datasets.dataset import Dataset

DATASETS = {  # name: its reader
    "scenes": "scenes",
    "folder": "folder",
    "refcoco": "refcoco",
    "refcoco+": "refcoco",
    "refcocog": "refcoco",
    "grefcoco": "refcoco",
    "reasonseg": "reasonseg",
}


def open_dataset(
    name: str, root: Path | None = None, split: str | None = None, is_lenient: bool = False
) -> "Dataset":
    """A data set by name; without a split its first.

    What is wrong with the listing of single items is raised at once, or, where `is_lenient`, by the
    item when its turn comes. Raises `CoPRSError` where it has no such split, or `root` does not
    hold it.
    """
    from coprs_core.datasets.dataset import Split
    from coprs_core.errors import CoPRSError, did_you_mean
    from coprs_core.files import find_file

    if name not in DATASETS:
        near = did_you_mean(name, tuple(DATASETS))
        raise CoPRSError(f"There is no data set {name!r}{near}: choose {', '.join(DATASETS)}.")
    reader = import_module(f"{__name__}.{DATASETS[name]}")
    splits = reader.list_splits(name)
    split = split or splits[0]
    if split not in splits:
        raise CoPRSError(f"The data set {name} has no split {split!r}: choose {', '.join(splits)}.")
    if root is None and name != "scenes":
        raise CoPRSError(f"The data set {name} lies on a disk: give its folder with --root.")
    where = Split(name, split, root and find_file(root), is_lenient)
    return replace(reader.read_split(where), split=split)
