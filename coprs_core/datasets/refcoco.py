"""RefCOCO, RefCOCO+ and RefCOCOg: expressions for one thing of a COCO picture each; gRefCOCO: for
one, several, or none.

Three layouts are read: the classic one (`refs(unc).p` and `instances.json`, Yu et al. 2016; of
gRefCOCO `grefs(unc).json`, Liu et al. 2023), the tables of `jxu124/refcoco…` (with pictures beside
them), and those of `lmms-lab/RefCOCO…` (with pictures inside). An expression is an item: "testA" of
RefCOCO has 5,657 in 1,975 objects.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coprs_core.datasets.dataset import TARGET_COUNT_GROUPS, Dataset, Split, target_count_tag
from coprs_core.datasets.formats import (
    ParquetTable,
    clean_instruction,
    declared_size,
    decode_segmentation,
    drawable_polygons,
    load_plain_pickle,
    missing_files_error,
    open_annotated_image,
    polygon_extent,
    read_json,
)
from coprs_core.errors import CoPRSError
from coprs_core.example import Example, Tag
from coprs_core.files import find_file, without_hidden
from coprs_core.machine import as_user_error
from coprs_core.parsing import parse_json

_SPLITS = {
    "refcoco": ("val", "testA", "testB", "train"),
    "refcoco+": ("val", "testA", "testB", "train"),
    "refcocog": ("val", "test", "train"),
    "grefcoco": ("val", "testA", "testB", "train"),
}
GROUPS: dict[str, tuple[str, Tag]] = {
    f"{words} words": ("words", words) for words in ("1 to 2", "3 to 5", "6 and more")
}
_PARTITIONS = {"refcocog": ("umd", "google")}
_HUB_NAMES = {"val": ("val", "validation"), "testA": ("testA", "test")}
_IMAGE_FOLDERS = (
    "images/mscoco/images/train2014",
    "images/train2014",
    "coco/train2014",
    "train2014",
)


_WRONG_LAYOUT = "not in the layout of the data set"
_AnnotatedImage = tuple[Image.Image, list[Any], str]
"""An image, the segmentations of its targets as COCO writes them, and a name for messages."""


def list_splits(name: str) -> tuple[str, ...]:
    """The splits by their published names."""
    return _SPLITS[name]


def read_split(split: Split) -> Dataset:
    """The expressions of a split, in order."""
    root, name = split.folder, split.dataset
    homes = (root / name, root / "refer_seg" / name, root)
    form = "grefs({}).json" if name == "grefcoco" else "refs({}).p"
    for home in homes:
        for partition in _PARTITIONS.get(name, ("unc", "google")):
            refs = find_file(home / form.format(partition))
            if refs.is_file():
                return _read_classic(split, refs)
    if files := _find_parquet(root, split.name):
        return _read_parquet(split, files)
    wanted = [home / form.format("…") for home in homes]
    wanted.append(root / "data" / f"{split.name}-….parquet")
    raise missing_files_error(f"{name}, split {split.name}", wanted, root)


def _length_group(text: str) -> str:
    words = len(text.split())
    return "1 to 2" if words < 3 else "3 to 5" if words < 6 else "6 and more"


def _find_parquet(root: Path, split: str) -> list[Path]:
    for stem in _HUB_NAMES.get(split, (split,)):
        for folder in (root / "data", root):
            if files := without_hidden(folder.glob(f"{stem}-*.parquet")):
                return files
    return []


def _read_classic(split: Split, refs: Path) -> Dataset:
    """refs(…).p: [{ref_id, ann_id, image_id, split, sentences [{sent}]}], in grefs(…).json with a
    list of ann_id, [-1] or `no_target` where nothing is meant; instances.json as COCO writes it."""
    instances = find_file(refs.with_name("instances.json"))
    if not instances.is_file():
        raise CoPRSError(f"{refs} is there and {instances} is not: copy the data set again.")
    with as_user_error(f"{refs} and instances.json: they are {_WRONG_LAYOUT}"):
        every = read_json(refs) if refs.suffix.lower() == ".json" else load_plain_pickle(refs)
        chosen = [ref for ref in every if _split_of(ref) in (split.name, None)]
        written = read_json(instances)
        wanted = {n for ref in chosen for n in _annotation_ids(ref) if isinstance(n, int | str)}
        # instances.json describes all of train2014: what nothing refers to is let go
        annotations = {n: a for n, a in _by_id(written["annotations"]).items() if n in wanted}
        images = _by_id(written["images"])
        for ref in () if split.is_lenient else chosen:
            _look_up(ref, images, annotations)
    pictures = _find_image_folder(split.folder, refs.parent)

    def open_one(number: int) -> _AnnotatedImage:
        image, things = _look_up(chosen[number], images, annotations)
        segmentations = [thing["segmentation"] for thing in things]
        name = ", ".join(f"annotation {thing['id']}" for thing in things)
        file, told = pictures / image["file_name"], declared_size(image)
        return (
            open_annotated_image(file, mask_size=told, extent=_extent(segmentations)),
            segmentations,
            name,
        )

    said = [
        _parse_expressions(ref.get("sentences") if isinstance(ref, dict) else None)
        for ref in chosen
    ]
    return _build_dataset(split, refs.name, said, open_one)


def _split_of(ref: Any) -> Any:
    """The split of an object; None where that cannot be read: it is an item that cannot, either."""
    return ref.get("split") if isinstance(ref, dict) else None


def _by_id(entries: list[Any]) -> dict[Any, dict]:
    """Entries of instances.json by number, those without one left out: nothing names them."""
    named = (entry for entry in entries if isinstance(entry, dict))
    return {one["id"]: one for one in named if isinstance(one.get("id"), int | str)}


def _look_up(ref: dict, images: dict, annotations: dict) -> tuple[dict, list[dict]]:
    """The image and the annotations that a reference points to; raises `LookupError`."""
    return images[ref["image_id"]], [annotations[number] for number in _annotation_ids(ref)]


def _annotation_ids(ref: dict) -> list[Any]:
    """The ids of the annotations that a reference points to; none where it has no target."""
    if not isinstance(ref, dict) or ref.get("no_target"):
        return []
    written = ref.get("ann_id")
    numbers = written if isinstance(written, list) else [written]
    return [number for number in numbers if number != -1]


def _extent(segmentations: list[Any]) -> tuple[float, float]:
    down, right = np.max([(0.0, 0.0), *map(polygon_extent, segmentations)], axis=0)
    return float(down), float(right)


def _parse_expressions(sentences: Any) -> list[str | None]:
    """The expressions for an object; [None] where they cannot be read."""
    try:
        return [s.get("sent") or s["raw"] for s in sentences]
    except (TypeError, LookupError, AttributeError):
        return [None]


def _read_parquet(split: Split, files: list[Path]) -> Dataset:
    table = ParquetTable(files)
    if {"sentences", "raw_anns", "image_path"} <= table.columns:
        with as_user_error(f"{files[0]} is {_WRONG_LAYOUT}"):
            said = [_parse_expressions(row) for row in table.column("sentences")]
        pictures = _find_image_folder(split.folder, split.folder)

        def open_one(number: int) -> _AnnotatedImage:
            row = table.row(number)
            segmentation = parse_json(row["raw_anns"])["segmentation"]
            told = declared_size(parse_json(row.get("raw_image_info") or "{}"))
            at = pictures / Path(row["image_path"]).name
            image = open_annotated_image(at, mask_size=told, extent=polygon_extent(segmentation))
            return image, [segmentation], f"row {number}"

        return _build_dataset(split, files[0].name, said, open_one)
    if {"answer", "segmentation", "image"} <= table.columns:
        with as_user_error(f"{files[0]} is {_WRONG_LAYOUT}"):
            none: list[str | None] = [None]
            said = [none if row is None else row for row in table.column("answer")]

        def open_inside(number: int) -> _AnnotatedImage:
            row = table.row(number)
            where = f"row {number} of {files[0].name}"
            segmentation = row["segmentation"]
            image = open_annotated_image(
                row["image"]["bytes"], where, extent=polygon_extent(segmentation)
            )
            return image, [segmentation], where

        return _build_dataset(split, files[0].name, said, open_inside)
    columns = ", ".join(sorted(table.columns))
    raise CoPRSError(
        f"{files[0]} has the columns {columns}: sentences, raw_anns and image_path, or answer, "
        "segmentation and image were expected."
    )


def _build_dataset(
    split: Split,
    file: str,
    expressions_by_object: Iterable[list[str | None]],
    open_object: Callable[[int], _AnnotatedImage],
) -> Dataset:
    """Make one item of each expression; None among them is an item that cannot be read."""
    with as_user_error(f"{file} is {_WRONG_LAYOUT}"):
        texts = list(expressions_by_object)
        expressions = [(number, text) for number, its in enumerate(texts) for text in its]
    if not expressions:
        raise CoPRSError(f"{file} holds nothing of the split {split.name}: choose another.")
    broken = [text is None for _, text in expressions]
    if all(broken) or (any(broken) and not split.is_lenient):
        raise CoPRSError(
            f"{file} is {_WRONG_LAYOUT} (an expression cannot be read): copy it again."
        )

    def item(i: int) -> Example:
        number, text = expressions[i]
        if text is None:
            raise CoPRSError(
                f"What is said in item {i} of {file} cannot be asked: write it as text."
            )
        question = clean_instruction(text, f"item {i} of {file}")
        with as_user_error(f"Item {i} of {file} is {_WRONG_LAYOUT}"):
            image, segmentations, where = open_object(number)
        size = image.height, image.width
        masks = [decode_segmentation(segmentation, size, where) for segmentation in segmentations]
        left_out = sum(drawable_polygons(segmentation)[1] for segmentation in segmentations)
        tags: dict[str, Tag] = {"words": _length_group(text)}
        if split.dataset == "grefcoco":
            masks = sorted(masks, key=_reading_order_key)
            tags["things"] = target_count_tag(len(masks))
        return Example(image, question, tuple(masks), size, index=i, tags=tags, left_out=left_out)

    counts = f"{len(expressions):,} expressions of {len(texts):,} objects"
    about = f"{split.dataset} {split.name} from {file}: {counts}"
    groups = GROUPS | (TARGET_COUNT_GROUPS if split.dataset == "grefcoco" else {})
    return Dataset(about, len(expressions), item, groups)


def _reading_order_key(mask: np.ndarray) -> tuple[int, float]:
    """Sort masks in reading order: by the third of the image that the centroid lies in, from the
    top, then from left to right."""
    y, x = np.nonzero(mask)
    return (int(3 * y.mean() / len(mask)), float(x.mean())) if len(y) else (3, 0.0)


def _find_image_folder(root: Path, home: Path) -> Path:
    folders = [base / way for base in (root, home, home.parent) for way in _IMAGE_FOLDERS]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise missing_files_error(
        "folder of COCO's train2014 pictures", folders[: len(_IMAGE_FOLDERS)], root
    )
