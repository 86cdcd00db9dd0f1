"""RefCOCO, RefCOCO+ and RefCOCOg: expressions for one thing of a COCO picture each.

Three layouts are read: the classic one (`refs(unc).p` and `instances.json`, Yu et al. 2016), the
tables of `jxu124/refcoco…` (with pictures beside them), and those of `lmms-lab/RefCOCO…` (with
pictures inside). An expression is an item: "testA" of RefCOCO has 5,657 in 1,975 objects.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from coprs_core.datasets.example import Dataset, Example, Place, Tag
from coprs_core.datasets.stored import Table, mask_of, nothing_found, picture, plain_pickle
from coprs_core.errors import CoPRSError
from coprs_core.machine import reading
from coprs_core.parsing import from_json
from coprs_core.prompts import check_instruction

_SPLITS = {
    "refcoco": ("val", "testA", "testB", "train"),
    "refcoco+": ("val", "testA", "testB", "train"),
    "refcocog": ("val", "test", "train"),
}
GROUPS: dict[str, tuple[str, Tag]] = {
    f"{words} words": ("words", words) for words in ("1 to 2", "3 to 5", "6 and more")
}
_PARTITIONS = {"refcocog": ("umd", "google")}
_HUB_NAMES = {"val": ("val", "validation"), "testA": ("testA", "test")}
_PICTURES = ("images/mscoco/images/train2014", "images/train2014", "coco/train2014", "train2014")


_NO_LAYOUT = "not in the layout of the data set"
_Object = tuple[Image.Image, Any, str]
"""A picture, a segmentation as COCO writes it, and what to call it."""


def splits(name: str) -> tuple[str, ...]:
    """As the data set's makers call them."""
    return _SPLITS[name]


def read(place: Place) -> Dataset:
    """The expressions of a split, in order."""
    root, name = place.folder, place.name
    homes = (root / name, root / "refer_seg" / name, root)
    for home in homes:
        for partition in _PARTITIONS.get(name, ("unc", "google")):
            refs = home / f"refs({partition}).p"
            if refs.is_file():
                return _classic(place, refs)
    if files := _tables(root, place.split):
        return _from_table(place, files)
    wanted = [home / "refs(…).p" for home in homes] + [root / "data" / f"{place.split}-….parquet"]
    raise nothing_found(f"{name}, split {place.split}", wanted, root)


def _length(text: str) -> str:
    words = len(text.split())
    return "1 to 2" if words < 3 else "3 to 5" if words < 6 else "6 and more"


def _tables(root: Path, split: str) -> list[Path]:
    for stem in _HUB_NAMES.get(split, (split,)):
        for folder in (root / "data", root):
            if files := sorted(folder.glob(f"{stem}-*.parquet")):
                return files
    return []


def _classic(place: Place, refs: Path) -> Dataset:
    """refs(…).p: [{ref_id, ann_id, image_id, split, sentences [{sent}]}]; instances.json as COCO
    writes it."""
    instances = refs.with_name("instances.json")
    if not instances.is_file():
        raise CoPRSError(f"{refs} is there and {instances} is not: copy the data set again.")
    with reading(f"{refs} and instances.json: they are {_NO_LAYOUT}"):
        chosen = [ref for ref in plain_pickle(refs) if ref["split"] == place.split]
        wanted = {ref["ann_id"] for ref in chosen}
        written = from_json(instances.read_text(encoding="utf-8"))
        annotations = {a["id"]: a for a in written["annotations"] if a["id"] in wanted}
        images = {image["id"]: image["file_name"] for image in written["images"]}
        objects = [(images[ref["image_id"]], annotations[ref["ann_id"]]) for ref in chosen]
        said = [[s["sent"] for s in ref["sentences"]] for ref in chosen]
    pictures = _pictures(place.folder, refs.parent)

    def open_one(number: int) -> _Object:
        file, annotation = objects[number]
        return (
            picture(pictures / file),
            annotation["segmentation"],
            f"annotation {annotation['id']}",
        )

    return _listed(place, refs.name, said, open_one)


def _from_table(place: Place, files: list[Path]) -> Dataset:
    table = Table(files)
    if {"sentences", "raw_anns", "image_path"} <= table.columns:
        with reading(f"{files[0]} is {_NO_LAYOUT}"):
            said = [[s.get("sent") or s["raw"] for s in row] for row in table.column("sentences")]
        pictures = _pictures(place.folder, place.folder)

        def open_one(number: int) -> _Object:
            row = table.row(number)
            segmentation = from_json(row["raw_anns"])["segmentation"]
            return picture(pictures / Path(row["image_path"]).name), segmentation, f"row {number}"

        return _listed(place, files[0].name, said, open_one)
    if {"answer", "segmentation", "image"} <= table.columns:
        said = list(table.column("answer"))

        def open_inside(number: int) -> _Object:
            row = table.row(number)
            where = f"row {number} of {files[0].name}"
            return picture(row["image"]["bytes"], where), row["segmentation"], where

        return _listed(place, files[0].name, said, open_inside)
    columns = ", ".join(sorted(table.columns))
    raise CoPRSError(
        f"{files[0]} has the columns {columns}: sentences, raw_anns and image_path, or answer, "
        "segmentation and image were expected."
    )


def _listed(
    place: Place, file: str, said: list[list[str]], open_one: Callable[[int], _Object]
) -> Dataset:
    """From the expressions of each object."""
    with reading(f"{file} is {_NO_LAYOUT}"):
        expressions = [(number, text) for number, texts in enumerate(said) for text in texts]
    if not expressions:
        raise CoPRSError(f"{file} holds nothing of the split {place.split}: choose another.")

    def item(i: int) -> Example:
        number, text = expressions[i]
        with reading(f"Item {i} of {file} is {_NO_LAYOUT}"):
            image, segmentation, where = open_one(number)
        mask = mask_of(segmentation, (image.height, image.width), where)
        tags: dict[str, Tag] = {"words": _length(text)}
        size = image.height, image.width
        return Example(i, image, check_instruction(text), (mask,), size, tags=tags)

    counts = f"{len(expressions):,} expressions of {len(said):,} objects"
    about = f"{place.name} {place.split} from {file}: {counts}"
    return Dataset(about, len(expressions), item, GROUPS)


def _pictures(root: Path, home: Path) -> Path:
    folders = [base / way for base in (root, home, home.parent) for way in _PICTURES]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise nothing_found("folder of COCO's train2014 pictures", folders[: len(_PICTURES)], root)
