"""Data sets of the field, in exactly their layouts, written small: polygons, run lengths, several sentences, wrong files."""

import base64
import io
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from coprs_core.answer.compare import read_truth
from coprs_core.datasets import open_dataset
from coprs_core.datasets.folder import LISTING
from coprs_core.datasets.formats import decode_segmentation, drawable_polygons, load_plain_pickle
from coprs_core.datasets.labelme import rasterize_shapes
from coprs_core.errors import CoPRSError
from tests import ROOT

SIZE = 40, 60  # height, width
BOX = [10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]
OTHER = [40.0, 30.0, 50.0, 30.0, 50.0, 38.0, 40.0, 38.0]


def photo(number: int = 0, orientation: int = 1) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
    return Image.fromarray(pixels)


def jpeg(number: int = 0) -> bytes:
    told = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a turned camera: masks lie on the stored pixels
    photo(number).save(told, "JPEG", exif=exif)
    return told.getvalue()


def filled(*polygons: list[float]) -> np.ndarray:
    """The second opinion: Pillow, which draws borders too."""
    picture = Image.new("1", SIZE[::-1])
    for polygon in polygons:
        ImageDraw.Draw(picture).polygon(polygon, fill=1)
    return np.asarray(picture)


def uncompressed(mask: np.ndarray) -> dict:
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


MASK = coco.decode(coco.merge(coco.frPyObjects([BOX], *SIZE))).astype(bool)
COMPRESSED = coco.encode(np.asfortranarray(MASK, np.uint8))


@pytest.mark.parametrize(
    "segmentation, polygons",
    [
        ([BOX], [BOX]),
        (BOX, [BOX]),
        ([BOX, OTHER], [BOX, OTHER]),
        (uncompressed(MASK), [BOX]),
        (COMPRESSED, [BOX]),
        ({"size": list(SIZE), "counts": COMPRESSED["counts"].decode()}, [BOX]),
    ],
)
def test_every_kind_of_segmentation(segmentation, polygons):
    mask = decode_segmentation(segmentation, SIZE, "it")
    expected = filled(*polygons)
    assert mask.dtype == bool and mask.shape == SIZE
    assert (mask & expected).sum() / (mask | expected).sum() > 0.8  # but for the border
    assert not (mask & ~expected).any()


@pytest.mark.parametrize(
    "wrong",
    [[], [[1.0, 2.0]], {"size": [1, 1], "counts": [1]}, {"counts": [1]}, "x", None, [["a"] * 6]],
)
def test_what_is_no_segmentation_is_one_sentence(wrong):
    with pytest.raises(
        CoPRSError, match="The segmentation of annotation 7 is neither polygons nor"
    ):
        decode_segmentation(wrong, SIZE, "annotation 7")


# --- RefCOCO


def annotations() -> dict:
    return {
        "images": [
            {
                "id": n,
                "file_name": f"COCO_train2014_{n:012}.jpg",
                "height": SIZE[0],
                "width": SIZE[1],
            }
            for n in (1, 2)
        ],
        "annotations": [
            {"id": 11, "image_id": 1, "segmentation": [BOX], "iscrowd": 0, "category_id": 1},
            {"id": 12, "image_id": 2, "segmentation": [BOX, OTHER], "iscrowd": 0, "category_id": 1},
            {"id": 13, "image_id": 2, "segmentation": uncompressed(MASK), "iscrowd": 1},
        ],
    }


def refs() -> list[dict]:
    def ref(number, annotation, image, split, *sents):
        sentences = [
            {"sent": s, "raw": s.upper(), "tokens": s.split(), "sent_id": 1} for s in sents
        ]
        file = f"COCO_train2014_{image:012}_{number}.jpg"
        told = {"ref_id": number, "ann_id": annotation, "image_id": image, "split": split}
        return told | {"file_name": file, "sentences": sentences, "category_id": 1}

    return [
        ref(1, 11, 1, "val", "the cat", "left cat that sits by the door"),
        ref(2, 12, 2, "val", "both"),
        ref(3, 13, 2, "testA", "a café on the left"),
        ref(4, 11, 1, "train", "cat"),
    ]


def classic(root: Path, name: str = "refcoco", partition: str = "unc", home: str = "") -> Path:
    folder = root / home / name
    folder.mkdir(parents=True)
    (folder / f"refs({partition}).p").write_bytes(pickle.dumps(refs(), protocol=2))
    (folder / "instances.json").write_text(json.dumps(annotations()))
    pictures = root / "images/mscoco/images/train2014"
    pictures.mkdir(parents=True)
    for n in (1, 2):
        (pictures / f"COCO_train2014_{n:012}.jpg").write_bytes(jpeg(n))
    return root


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
@pytest.mark.parametrize("home", ["", "refer_seg"])
def test_the_classic_layout(tmp_path, name, home):
    root = classic(tmp_path, name, "umd" if name == "refcocog" else "unc", home)
    dataset = open_dataset(name, root, "val")
    examples = list(dataset.examples(0, 10))
    assert [e.instruction for e in examples] == [
        "the cat",
        "left cat that sits by the door",
        "both",
    ]
    assert dataset.num_items == 3 and "3 expressions of 2 objects" in dataset.about
    assert np.array_equal(examples[0].truth, MASK) and examples[0].photo.size == SIZE[::-1]
    assert examples[2].truth.sum() > examples[0].truth.sum()
    assert [e.tags["words"] for e in examples] == ["1 to 2", "6 and more", "1 to 2"]
    assert [e.index for e in dataset.examples(1, 1)] == [1] and dataset.examples(9, 5) is not None
    if name != "refcocog":
        (told,) = open_dataset(name, root, "testA").examples(0, 5)
        assert told.instruction == "a café on the left" and np.array_equal(told.truth, MASK)


def test_the_folder_of_the_refs_itself_may_be_given(tmp_path):
    root = classic(tmp_path)
    assert open_dataset("refcoco", root / "refcoco", "val").num_items == 3


def table(folder: Path, name: str, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / name, row_group_size=2)


def test_the_tables_of_jxu124(tmp_path):
    classic(tmp_path)
    (tmp_path / "refcoco").rename(tmp_path / "away")
    by_id = {a["id"]: a for a in annotations()["annotations"]}
    rows = [
        {
            "sentences": ref["sentences"],
            "raw_anns": json.dumps(by_id[ref["ann_id"]]),
            "raw_image_info": "{}",
            "image_path": f"coco/train2014/COCO_train2014_{ref['image_id']:012}.jpg",
            "split": ref["split"],
        }
        for ref in refs()
    ]
    table(tmp_path / "data", "validation-00000-of-00001-abc.parquet", rows[:3])
    table(tmp_path / "data", "train-00000-of-00001-abc.parquet", rows[3:])
    dataset = open_dataset("refcoco", tmp_path, "val")
    examples = list(dataset.examples(0, 10))
    assert dataset.num_items == 4 and [np.array_equal(e.truth, MASK) for e in examples] == [
        *(True, True, False, True)
    ]
    assert open_dataset("refcoco", tmp_path, "train").num_items == 1


def test_the_tables_of_lmms_lab(tmp_path):
    rows = [
        {
            "image": {"bytes": jpeg(n), "path": f"{n}.jpg"},
            "answer": ["the cat", "a cat"],
            "segmentation": BOX,
            "bbox": [10.0, 5.0, 20.0, 20.0],
            "file_name": f"{n}.jpg",
        }
        for n in range(3)
    ]
    table(tmp_path / "data", "val-00000-of-00002.parquet", rows[:2])
    with pytest.raises(CoPRSError, match="holds 1 of the 2 files of this split: copy the others"):
        open_dataset("refcocog", tmp_path, "val")
    table(tmp_path / "data", "val-00001-of-00002.parquet", rows[2:])
    dataset = open_dataset("refcocog", tmp_path, "val")
    examples = list(dataset.examples(0, 10))
    assert dataset.num_items == 6 == len(examples) and np.array_equal(examples[5].truth, MASK)
    decoded = np.asarray(Image.open(io.BytesIO(jpeg(2))).convert("RGB"))
    assert np.array_equal(np.asarray(examples[5].photo), decoded)  # not turned


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_that_would_run_something_is_not_read(tmp_path, capsys):
    root = classic(tmp_path)
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(CoPRSError, match="no pickle of plain values .*builtins.print"):
        open_dataset("refcoco", root, "val")
    assert "run" not in capsys.readouterr().out
    (root / "refcoco" / "refs(unc).p").write_bytes(b"\x80\x02broken")
    with pytest.raises(CoPRSError, match="no pickle of plain values"):
        open_dataset("refcoco", root, "val")


def test_plain_values_and_numbers_of_numpy_are_read(tmp_path):
    told = {"a": [1, 2.5, "é", None, True, (1,), {3}, np.float64(2.5)]}
    (tmp_path / "x.p").write_bytes(pickle.dumps(told))
    assert load_plain_pickle(tmp_path / "x.p") == told
    old = b"(dp0\nS'sent'\np1\nS'caf\xc3\xa9'\np2\ns."  # as Python 2 wrote text
    (tmp_path / "old.p").write_bytes(old)
    assert load_plain_pickle(tmp_path / "old.p") == {"sent": "café"}


def test_a_wrong_layout_says_what_it_looked_for_and_what_is_there(tmp_path):
    (tmp_path / "something").mkdir()
    with pytest.raises(
        CoPRSError, match=r"no refcoco, split val: looked for .*refs\(…\)\.p.* holds something"
    ):
        open_dataset("refcoco", tmp_path, "val")
    with pytest.raises(CoPRSError, match="no ReasonSeg, split test: looked for .*holds something"):
        open_dataset("reasonseg", tmp_path, "test")
    with pytest.raises(CoPRSError, match="holds nothing"):
        open_dataset("refcoco", tmp_path / "gone", "val")
    with pytest.raises(CoPRSError, match="has no split 'testA': choose val, test, train"):
        open_dataset("refcocog", tmp_path, "testA")
    with pytest.raises(CoPRSError, match="no data set 'refcocoo', did you mean refcoco"):
        open_dataset("refcocoo", tmp_path)
    with pytest.raises(CoPRSError, match="lies on a disk: give its folder with --root"):
        open_dataset("reasonseg")
    table(tmp_path / "data", "val-0.parquet", [{"a": 1}])
    with pytest.raises(CoPRSError, match="has the columns a: sentences, raw_anns"):
        open_dataset("refcoco", tmp_path, "val")
    (tmp_path / "data" / "val-0.parquet").write_bytes(b"no table")
    with pytest.raises(CoPRSError, match="is no Parquet file"):
        open_dataset("refcoco", tmp_path, "val")


def test_files_that_are_missing_are_named(tmp_path):
    root = classic(tmp_path)
    dataset = open_dataset("refcoco", root, "val")
    picture = root / "images/mscoco/images/train2014/COCO_train2014_000000000002.jpg"
    picture.write_bytes(b"no picture")
    with pytest.raises(CoPRSError, match="000000000002.jpg cannot be read"):
        dataset.item(2)
    picture.unlink()
    with pytest.raises(CoPRSError, match="000000000002.jpg is not there"):
        dataset.item(2)
    assert dataset.item(0) is not None  # only when its turn comes
    (root / "refcoco" / "instances.json").write_text("{}")
    with pytest.raises(CoPRSError, match="not in the layout of the data set"):
        open_dataset("refcoco", root, "val")
    (root / "refcoco" / "instances.json").unlink()
    with pytest.raises(CoPRSError, match="instances.json is not"):
        open_dataset("refcoco", root, "val")
    (root / "refcoco" / "instances.json").write_text(json.dumps(annotations()))
    (root / "images").rename(root / "elsewhere")
    with pytest.raises(CoPRSError, match="no folder of COCO's train2014 pictures"):
        open_dataset("refcoco", root, "val")


# --- ReasonSeg

INSIDE = [[15, 10], [20, 10], [20, 15], [15, 15]]
LARGE = [[10, 5], [30, 5], [30, 25], [10, 25]]


def lisa(root: Path, name: str, shapes: list[dict], text: str = "the cat", **more) -> None:
    folder = root / "ReasonSeg" / "val"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jpg").write_bytes(jpeg())
    told = {"text": [text, "another"], "is_sentence": True, "shapes": shapes} | more
    (folder / f"{name}.json").write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")


def shape(label: str, points) -> dict:
    return {"label": label, "points": points}


def test_lisas_folders(tmp_path):
    lisa(tmp_path, "a", [shape("ignore", INSIDE), shape("target", LARGE)])
    lisa(tmp_path, "b", [shape("target", INSIDE), shape("Ignore_1", LARGE), shape("flag", LARGE)])
    lisa(tmp_path, "c", [shape("target", LARGE)], text="", is_sentence=False)
    for root in (tmp_path, tmp_path / "ReasonSeg"):
        dataset = open_dataset("reasonseg", root, "val")
        assert dataset.num_items == 3
    first, second = dataset.item(0), dataset.item(1)
    inside, large = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    inside[10:16, 15:21] = large[5:26, 10:31] = True  # borders included
    assert np.array_equal(first.truth, large & ~inside) and np.array_equal(first.ignore, inside)
    assert np.array_equal(second.truth, inside) and np.array_equal(second.ignore, large & ~inside)
    assert first.instruction == "the cat" and first.tags == {"long": True}
    with pytest.raises(CoPRSError, match="The instruction is empty"):
        dataset.item(2)


def test_lisas_old_files_and_broken_ones(tmp_path):
    lisa(tmp_path, "a", [shape("target", LARGE)])
    path = tmp_path / "ReasonSeg/val/a.json"
    path.write_bytes(path.read_text().replace("the cat", "the café").encode("cp1252"))
    dataset = open_dataset("reasonseg", tmp_path)
    assert dataset.item(0).instruction == "the café"
    for written, said in (("{", "is no JSON"), ('{"text": ["x"]}', "is not in LISA's layout")):
        path.write_text(written)
        with pytest.raises(CoPRSError, match=said):
            dataset.item(0)
    lisa(tmp_path, "a", [])
    assert dataset.item(0).masks == () and not dataset.item(0).truth.any()
    path.with_suffix(".jpg").unlink()
    with pytest.raises(CoPRSError, match="a.jpg is not there"):
        dataset.item(0)


def test_the_tables_of_reasonseg(tmp_path):
    rows = [
        {"image": {"bytes": jpeg(), "path": ""}, "text": "the cat", "mask": MASK.tolist()},
        {"image": {"bytes": jpeg(), "path": ""}, "text": "it", "mask": MASK[:3].tolist()},
    ]
    folder = tmp_path / "ReasonSeg_val" / "data"
    table(folder, "test-00000-of-00001.parquet", rows)
    for root in (tmp_path, tmp_path / "ReasonSeg_val"):
        dataset = open_dataset("reasonseg", root, "val")
        assert dataset.num_items == 2 and "ignore counts as target" in dataset.about
    assert np.array_equal(dataset.item(0).truth, MASK) and dataset.item(0).ignore is None
    with pytest.raises(CoPRSError, match=r"mask of row 1 is \[3, 60\] and its picture 40×60"):
        dataset.item(1)
    table(folder, "test-00000-of-00001.parquet", [{"text": "x"}])
    with pytest.raises(CoPRSError, match="has no column image, mask"):
        open_dataset("reasonseg", tmp_path, "val")


# --- a plain folder without a listing


def test_texts_beside_photos(tmp_path):
    for name, masks in (("a", 1), ("b", 2), ("c", 0)):
        photo().save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"what is {name}?\n")
        for i in range(masks):
            end = "_mask.png" if masks == 1 else f"_mask_{i + 1}.png"
            Image.fromarray(MASK).save(tmp_path / f"{name}{end}")
    dataset = open_dataset("folder", tmp_path)
    assert [len(e.masks) for e in dataset.examples(0, 9)] == [1, 2, 0]
    assert np.array_equal(dataset.item(0).truth, MASK) and dataset.item(2).tags == {
        "things": "none"
    }
    for i in range(1, 12):  # the k-th focus token is of the k-th mask
        Image.fromarray(np.arange(MASK.size).reshape(MASK.shape) < i).save(
            tmp_path / f"c_mask_{i}.png"
        )
    assert [int(m.sum()) for m in open_dataset("folder", tmp_path).item(2).masks] == [*range(1, 12)]
    assert dataset.item(0).instruction == "what is a?"
    (tmp_path / "a.png").rename(tmp_path / "a.PNG")
    assert len(open_dataset("folder", tmp_path).item(0).masks) == 1
    (tmp_path / "c-mask.png").write_bytes(b"")
    with pytest.raises(CoPRSError, match="c-mask.png is no name of a mask: c_mask.png, or"):
        open_dataset("folder", tmp_path)  # not taken for a photo on which nothing fits
    (tmp_path / "c-mask.png").unlink()
    (tmp_path / "e.txt").write_text(" \n")
    photo().save(tmp_path / "e.jpg")
    with pytest.raises(CoPRSError, match="The instruction in .*e.txt cannot be asked. The instruc"):
        open_dataset("folder", tmp_path)
    (tmp_path / "e.txt").unlink()
    (tmp_path / "d.txt").write_text("x")
    with pytest.raises(CoPRSError, match="d.txt has no photo beside it"):
        open_dataset("folder", tmp_path)


def test_a_line_ends_where_it_ends(tmp_path):
    """Not at a line separator in its text."""
    photo().save(tmp_path / "a.png")
    row = {"photo": "a.png", "instruction": "the\u2028cat", "masks": []}
    (tmp_path / LISTING).write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert open_dataset("folder", tmp_path).num_items == 1


# --- what nobody would write


def test_rows_of_tables_that_are_none(tmp_path):
    classic(tmp_path)
    (tmp_path / "refcoco").rename(tmp_path / "away")
    good = {"sentences": [{"sent": "a", "raw": "A"}], "raw_anns": "{", "image_path": "x.jpg"}
    table(tmp_path / "data", "validation-0.parquet", [good])
    with pytest.raises(CoPRSError, match="Item 0 of validation-0.parquet is not in the layout"):
        open_dataset("refcoco", tmp_path, "val").item(0)
    table(tmp_path / "data", "validation-0.parquet", [good | {"sentences": None}])
    with pytest.raises(CoPRSError, match="is not in the layout of the data set"):
        open_dataset("refcoco", tmp_path, "val")
    inside = {"image": None, "answer": ["a"], "segmentation": BOX}
    pictured = inside | {"image": {"bytes": b"no picture", "path": ""}}
    table(tmp_path / "inside", "val-0.parquet", [inside, pictured])
    dataset = open_dataset("refcoco", tmp_path / "inside", "val")
    with pytest.raises(CoPRSError, match="Item 0 of val-0.parquet is not in the layout"):
        dataset.item(0)
    with pytest.raises(CoPRSError, match="The picture row 1 of val-0.parquet cannot be read"):
        dataset.item(1)
    table(
        tmp_path / "ReasonSeg_val",
        "test-0.parquet",
        [{"image": None, "text": "x", "mask": [[True]]}],
    )
    with pytest.raises(CoPRSError, match="Row 0 is not in the layout of the data set"):
        open_dataset("reasonseg", tmp_path, "val").item(0)


@pytest.mark.parametrize("points", [[], [1, 2], [["a", "b"]], [[1, 2, 3]], None])
def test_shapes_without_points(tmp_path, points):
    lisa(tmp_path, "a", [shape("target", points)])
    with pytest.raises(CoPRSError, match="a.json is not in LISA's layout") as raised:
        open_dataset("reasonseg", tmp_path).item(0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["white", "ones", "palette", "transparent"])
def test_masks_are_read_as_they_are_commonly_written(tmp_path, kind):
    truth = np.zeros((6, 8), bool)
    truth[1:3, 2:5] = True
    picture = Image.fromarray(truth.astype(np.uint8) * (255 if kind == "white" else 1))
    if kind == "palette":
        picture.putpalette([0, 0, 0, 128, 0, 0])  # as VOC does it
    elif kind == "transparent":
        white = np.full((6, 8, 4), 255, np.uint8)
        white[..., 3] = truth * 255
        picture = Image.fromarray(white)
    picture.save(tmp_path / "a_mask.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("it")
    (example,) = open_dataset("folder", tmp_path).examples(0, 9)
    assert np.array_equal(example.truth, truth)


def test_a_mask_without_a_pixel_is_refused(tmp_path):
    Image.new("L", (8, 6)).save(tmp_path / "a_mask.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("it")
    with pytest.raises(CoPRSError, match="a_mask.png is empty: list no mask where nothing fits"):
        list(open_dataset("folder", tmp_path).examples(0, 9))


# --- what would crash the process, or take all memory


def pickled(code: bytes) -> bytes:
    return b"\x80\x02" + code + b"."


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """A call of a global in a pickle."""
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def number(value: int) -> bytes:
    return b"I%d\n" % value


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def tower(height: int) -> bytes:
    """A tuple of tuples of tuples, each twice: to hash it takes 2 ** height steps."""
    return b"K\1" + b"2\x86" * height


F8 = call("numpy", "dtype", text("f8"))
HOSTILE_PICKLES = {
    "bytearray": call("builtins", "bytearray", number(10**12)),
    "bytearray 5": b"\x96" + (10**12).to_bytes(8, "little"),
    "a large number in the memo": b"K\1r\xf0\xff\xff\x3f",
    "a long text that is not there": b"\x8d" + (10**12).to_bytes(8, "little"),
    "long bytes that are not there": b"\x8e" + (10**12).to_bytes(8, "little"),
    "a set of a number": call("builtins", "set", number(10**9)),
    "a set of a text": call("builtins", "frozenset", text("a")),
    "many sets of one list": b"(" + b"K\1" * 1000 + b"lq\0" + b"".join(
        b"0cbuiltins\nset\nh\0\x85R" for _ in range(20_000)
    ),
    "a tuple of tuples as a key": b"}" + tower(64) + b"K\1s",
    "tuples of tuples in a dictionary": b"(" + tower(64) + b"K\1d",
    "tuples of tuples in a set": b"\x8f(" + tower(64) + b"\x90",
    "tuples of tuples in a frozen set": b"(" + tower(64) + b"\x91",
    "a type with fields": call("numpy", "dtype", b"]" + text("f8") + b"a"),
    "a type of objects": call("numpy", "dtype", text("O")),
    "a type of 2 GB": call("numpy", "dtype", text("V2000000000")),
    "a state that is none": F8 + b"(K\3" + text("<") + b"K\1K\2K\3tb",
    "a state of numbers": F8 + b"(" + number(3) * 8 + b"tb",
    "a number of too few bytes": call("numpy.core.multiarray", "scalar", F8, b"C\1a"),
    "a number of no type": call("numpy._core.multiarray", "scalar", b"N", b"C\1a"),
    "a type that is called": F8 + b"(tR",
    "a maker with another state": b"cbuiltins\nset\n}" + text("__doc__") + b"K\1sb",
    "an object": b"(cbuiltins\nset\no",
    "a new object": b"cbuiltins\nset\n)\x81",
    "an instance": b"(ibuiltins\nset\n",
    "an extension": b"\x82\1",
    "a persistent one": b"Pa\n",
}  # fmt: skip
READ_PICKLES = """
import sys
from pathlib import Path
import torch
from coprs_core.datasets.formats import load_plain_pickle
from coprs_core.errors import CoPRSError
from coprs_core.machine import peak_memory
before = peak_memory(torch.device("cpu"))
for path in sorted(Path(sys.argv[1]).glob("*.p")):
    try:
        print(path.stem, "was read", load_plain_pickle(path), flush=True)
    except CoPRSError as problem:
        print(path.stem, "|", problem, flush=True)
grown = peak_memory(torch.device("cpu")) - before
assert grown < 100e6, grown
"""


def in_a_process(code: str, *arguments: object) -> str:
    """What a process of its own prints, for it may crash."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stdout[-1000:], done.stderr[-2000:])
    return done.stdout


def test_no_pickle_crashes_the_process_or_takes_its_memory(tmp_path):
    for i, code in enumerate(HOSTILE_PICKLES.values()):
        (tmp_path / f"{i:02}.p").write_bytes(pickled(code))
    told = in_a_process(READ_PICKLES, tmp_path).splitlines()
    assert len(told) == len(HOSTILE_PICKLES)
    for name, said in zip(HOSTILE_PICKLES, told, strict=True):
        assert "is no pickle of plain values (" in said or name.startswith("a large number"), said


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_of_numpy_are_read_as_plain_ones(tmp_path, protocol):
    told = {
        "a": [
            np.int64(-7),
            np.uint8(200),
            np.bool_(True),
            np.float32(0.5),
            np.dtype(">f8").type(2),
        ],
        "b": [{1, 2}, frozenset({"é"}), 1 + 2j, b"\xff", (1, (2, "x")), 10**30, None, b""],
        ("a", 1): [],
    }
    (tmp_path / "x.p").write_bytes(pickle.dumps(told, protocol=protocol))
    read = load_plain_pickle(tmp_path / "x.p")
    assert read == told and [type(v) for v in read["a"]] == [int, int, bool, float, float]


def test_numbers_that_python_2_wrote(tmp_path):
    kind = b"cnumpy\ndtype\n(S'i4'\nK\0K\1tR(K\3S'>'\nNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    code = b"cnumpy.core.multiarray\nscalar\n(" + kind + b"U\4\xff\xff\xff\xfetR"
    (tmp_path / "x.p").write_bytes(pickled(code))
    assert load_plain_pickle(tmp_path / "x.p") == -2


def test_python_2_texts_in_another_encoding(tmp_path):
    """cp1252 is read, another is refused when its turn comes, and never asked as rubbish."""
    root = classic(tmp_path)
    old = pickle.dumps(refs(), protocol=2)
    for was, written in (("the cat", b"\x92s hat!"), ("both", b"\xc4\xe3\xba\xc3")):
        old = old.replace(text(was), b"U" + bytes([len(written)]) + written)
    (root / "refcoco" / "refs(unc).p").write_bytes(old)
    dataset = open_dataset("refcoco", root, "val")
    assert dataset.item(0).instruction == "’s hat!"
    with pytest.raises(CoPRSError, match="neither UTF-8 nor English in cp1252"):
        dataset.item(2)


DRAW = """
import json, sys
from coprs_core.datasets.formats import decode_segmentation
from coprs_core.errors import CoPRSError
for segmentation in json.load(open(sys.argv[1])):
    try:
        print("drawn", decode_segmentation(segmentation, (40, 60), "it").sum(), flush=True)
    except CoPRSError as problem:
        print(problem, flush=True)
"""
INF, NAN = float("inf"), float("nan")
WRONG_POLYGONS = {
    "far": [1e9, 5, 30, 5, 30, 25],
    "far on the other side": [-1e9, 5, 30, 5, 30, 25],
    "farther": [1e300, -1e300, 30, 5, 30, 25],
    "endless": [10, INF, 30, 5, 30, 25],
    "no number": [NAN, 5, 30, 5, 30, 25],
    "large": [10**400, 5, 30, 5, 30, 25],
    "a long way": [0, 0, 90_000, 90_000] * 100,
    "odd": [10, 5, 30, 5, 30, 25, 10],
    "two corners": [10, 5, 30, 25],
    "text": ["a"] * 6,
    "null": [None] * 6,
    "lists": [[10, 5]] * 6,
    "none": [],
    "half a float": [2147483647.5, 2147483648.5, -2147483649.5, 5, 30, 25],
}
WRONG_RUNS = {
    "size as text": {"size": ["40", "60"], "counts": [2400]},
    "one size": {"size": [40], "counts": [2400]},
    "size as a number": {"size": 2400, "counts": [2400]},
    "a large size": {"size": [10**9, 10**9], "counts": [10**18]},
    "a size without end": {"size": [INF, NAN], "counts": [2400]},
    "too few": {"size": [40, 60], "counts": [10, 20]},
    "too many": {"size": [40, 60], "counts": [2400, 2400]},
    "negative": {"size": [40, 60], "counts": [2401, -1]},
    "large": {"size": [40, 60], "counts": [2**32 + 2400]},
    "larger": {"size": [40, 60], "counts": [10**30]},
    "no number": {"size": [40, 60], "counts": [NAN, 2400]},
    "half": {"size": [40, 60], "counts": [0.5, 2399.5]},
    "text": {"size": [40, 60], "counts": ["a", "b"]},
    "lists": {"size": [40, 60], "counts": [[1], [1, 2]]},
    "null": {"size": [40, 60], "counts": None},
    "a dictionary": {"size": [40, 60], "counts": {"a": 1}},
    "rubbish": {"size": [40, 60], "counts": "~~~~\u00e9"},
    "control characters": {"size": [40, 60], "counts": "\x00\x01\x02"},
    "without an end": {"size": [40, 60], "counts": "o" * 40},
    "long": {"size": [40, 60], "counts": "o" * 10_000_000},
    "empty": {"size": [40, 60], "counts": ""},
    "none": {"size": [40, 60], "counts": []},
    "a mixture": [{"size": [40, 60], "counts": [2400]}, BOX],
}


def test_no_segmentation_crashes_the_process(tmp_path):
    """Each in a list of its own, for one crash must not hide the others."""
    wrong = [
        *WRONG_POLYGONS.values(),
        *([v] for v in WRONG_POLYGONS.values()),
        *WRONG_RUNS.values(),
    ]
    (tmp_path / "x.json").write_text(json.dumps(wrong))
    told = in_a_process(DRAW, tmp_path / "x.json").splitlines()
    assert len(told) == len(wrong)
    mixed = told.pop()  # of a list of run lengths and a polygon the polygon is left
    for said in told:
        assert said.startswith("The segmentation of it is neither polygons nor run lengths"), said
    assert mixed == f"drawn {MASK.sum()}"


@pytest.mark.parametrize("wrong", WRONG_POLYGONS.values(), ids=WRONG_POLYGONS)
def test_one_wrong_polygon_beside_good_ones_is_left_out_and_counted(tmp_path, wrong):
    both = [BOX, wrong, OTHER]
    assert np.array_equal(
        decode_segmentation(both, SIZE, "it"), decode_segmentation([BOX, OTHER], SIZE, "it")
    )
    assert drawable_polygons(both)[1] == 1 and drawable_polygons([BOX, OTHER])[1] == 0
    root = classic(tmp_path)
    told = annotations()
    told["annotations"][1]["segmentation"] = both
    (root / "refcoco" / "instances.json").write_text(json.dumps(told))
    dataset = open_dataset("refcoco", root, "val")
    assert [dataset.item(i).left_out for i in range(3)] == [0, 0, 1]


def test_a_polygon_that_reaches_out_of_the_picture_is_drawn():
    beyond = [-500.0, -500.0, 900.0, -500.0, 900.0, 900.0, -500.0, 900.0]
    assert decode_segmentation([beyond], SIZE, "it").all() and drawable_polygons([beyond])[1] == 0


def test_run_lengths_as_other_writers_have_them():
    counts = uncompressed(MASK)["counts"]
    for told in ([float(n) for n in counts], tuple(counts)):
        assert np.array_equal(
            decode_segmentation({"size": list(SIZE), "counts": told}, SIZE, "it"), MASK
        )


# --- frames


def upright(number: int = 0) -> Image.Image:
    """What a viewer shows of `jpeg`: 40 wide and 60 high."""
    return Image.open(io.BytesIO(jpeg(number))).transpose(Image.Transpose.ROTATE_270)


def test_masks_that_were_made_for_the_photo_as_it_is_shown(tmp_path):
    """By the size that instances.json tells."""
    root = classic(tmp_path)
    told = annotations()
    tall = [5.0, 40.0, 25.0, 40.0, 25.0, 55.0, 5.0, 55.0]
    told["images"][0] |= {"height": SIZE[1], "width": SIZE[0]}
    told["annotations"][0]["segmentation"] = [tall]
    (root / "refcoco" / "instances.json").write_text(json.dumps(told))
    example = open_dataset("refcoco", root, "val").item(0)
    assert example.size == SIZE[::-1] and example.truth[45, 10] and not example.truth[10, 10]
    assert np.array_equal(np.asarray(example.photo), np.asarray(upright(1)))
    told["images"][0] |= {"height": 7, "width": 7}
    (root / "refcoco" / "instances.json").write_text(json.dumps(told))
    with pytest.raises(CoPRSError, match="is of a picture of 7×7 pixels, and it has 60×40"):
        open_dataset("refcoco", root, "val").item(0)


def test_a_square_photo_that_exif_turns_is_refused(tmp_path):
    root = classic(tmp_path)
    told = annotations()
    exif = Image.Exif()
    exif[0x0112] = 6
    square = Image.new("RGB", (60, 60))
    square.save(root / "images/mscoco/images/train2014/COCO_train2014_000000000001.jpg", exif=exif)
    told["images"][0] |= {"height": 60, "width": 60}
    (root / "refcoco" / "instances.json").write_text(json.dumps(told))
    with pytest.raises(CoPRSError, match="both as it is stored and as its EXIF tag turns it"):
        open_dataset("refcoco", root, "val").item(0)
    lisa(tmp_path, "a", [shape("target", INSIDE)])
    square.save(tmp_path / "ReasonSeg/val/a.jpg", exif=exif)
    with pytest.raises(CoPRSError, match="EXIF tag turns it"):
        open_dataset("reasonseg", tmp_path).item(0)


def test_shapes_that_were_drawn_on_the_photo_as_it_is_shown(tmp_path):
    low = [[5, 50], [20, 50], [20, 55], [5, 55]]  # below the photo as it is stored
    lisa(tmp_path, "a", [shape("target", low)])
    lisa(tmp_path, "b", [shape("target", INSIDE)], imageHeight=SIZE[1], imageWidth=SIZE[0])
    lisa(tmp_path, "c", [shape("target", INSIDE)], imageHeight=SIZE[0], imageWidth=SIZE[1])
    dataset = open_dataset("reasonseg", tmp_path)
    assert [dataset.item(i).size for i in range(3)] == [SIZE[::-1], SIZE[::-1], SIZE]
    assert dataset.item(0).truth.sum() == 16 * 6
    rows = [{"image": {"bytes": jpeg(), "path": ""}, "text": "it", "mask": MASK.T.tolist()}]
    table(tmp_path / "ReasonSeg_test", "test-0.parquet", rows)
    example = open_dataset("reasonseg", tmp_path, "test").item(0)
    assert np.array_equal(example.truth, MASK.T) and example.photo.size == SIZE


def in_png(picture: Image.Image, *chunks: tuple[bytes, bytes]) -> bytes:
    told = io.BytesIO()
    picture.save(told, "PNG")
    parts = (
        len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
        for name, body in chunks
    )
    return told.getvalue()[:33] + b"".join(parts) + told.getvalue()[33:]


BESIDE = [(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))), (b"iCCP", b""), (b"eXIf", b"\xff")]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def test_what_stands_beside_pixels_breaks_no_photo_and_no_mask_of_a_data_set(tmp_path):
    root = classic(tmp_path)
    lisa(tmp_path, "a", [shape("target", LARGE)])
    (tmp_path / "ReasonSeg/val/a.jpg").write_bytes(in_png(photo(3), *BESIDE))
    pictures = root / "images/mscoco/images/train2014"
    (pictures / "COCO_train2014_000000000001.jpg").write_bytes(in_png(photo(3), *BESIDE))
    for name in ("reasonseg", "refcoco"):
        read = open_dataset(name, root, "val").item(0).photo
        assert np.array_equal(np.asarray(read), np.asarray(photo(3))), name
    mask = Image.fromarray(MASK.astype(np.uint8) * 255)
    (tmp_path / "m.png").write_bytes(in_png(mask, *BESIDE))
    assert np.array_equal(read_truth(tmp_path / "m.png", SIZE), MASK)


def test_twelve_bits_of_a_data_set_are_no_white_picture(tmp_path):
    lisa(tmp_path, "a", [shape("target", LARGE)])
    values = np.linspace(0, 4095, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "ReasonSeg/val/a.jpg", "PNG")
    read = np.asarray(open_dataset("reasonseg", tmp_path).item(0).photo)
    assert read.min() == 0 and read.max() == 255 and 120 < read.mean() < 135


@pytest.mark.parametrize(
    "data, words",
    [(POINTER, "Git LFS pointer.*git lfs pull"), (b"", "0 bytes"), (b"<html>", "web page")],
)
def test_what_is_no_picture_is_named_in_data_sets_and_masks(tmp_path, data, words):
    lisa(tmp_path, "a", [shape("target", LARGE)])
    (tmp_path / "ReasonSeg/val/a.jpg").write_bytes(data)
    with pytest.raises(CoPRSError, match=f"The picture .*a.jpg cannot be read.*{words}"):
        open_dataset("reasonseg", tmp_path).item(0)
    (tmp_path / "m.png").write_bytes(data)
    with pytest.raises(CoPRSError, match=f"This true mask cannot be read .*{words}"):
        read_truth(tmp_path / "m.png", SIZE)


def test_pointers_of_git_lfs_in_the_place_of_a_data_set(tmp_path):
    root = classic(tmp_path)
    (root / "refcoco" / "refs(unc).p").write_bytes(POINTER)
    lisa(tmp_path, "a", [shape("target", LARGE)])
    (tmp_path / "ReasonSeg/val/a.json").write_bytes(POINTER)
    (tmp_path / "ReasonSeg_test").mkdir()
    (tmp_path / "ReasonSeg_test" / "test-0.parquet").write_bytes(POINTER)
    for name, split in (("refcoco", "val"), ("reasonseg", "val"), ("reasonseg", "test")):
        with pytest.raises(CoPRSError, match="pointer of Git LFS; run `git lfs pull`"):
            open_dataset(name, root, split).item(0)


def test_a_name_that_no_disk_holds_is_one_item(tmp_path):
    photo().save(tmp_path / "a.png")
    names = ("a.png", "a" * 300 + ".png", "a\0.png")
    rows = ({"photo": n, "instruction": "the cat", "masks": []} for n in names)
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = open_dataset("folder", tmp_path, is_lenient=True)
    tried = [dataset.try_read(i) for i in range(3)]
    assert tried[0].instruction == "the cat"
    assert all("which is not there" in one.problem for one in tried[1:])


# --- labelme's kinds of shapes


def kind(shape_type: str | None, points, label: str = "target", **more) -> dict:
    return {"label": label, "points": points, "shape_type": shape_type} | more


def test_rectangles_circles_and_masks(tmp_path):
    pasted = np.array([[1, 0, 1], [1, 1, 1]], bool)
    coded = io.BytesIO()
    Image.fromarray(pasted.astype(np.uint8) * 255).save(coded, "PNG")
    png = base64.b64encode(coded.getvalue()).decode()
    shapes = {
        "a": kind("rectangle", [[30, 25], [10, 5]]),  # from any corner to the other
        "b": kind("circle", [[30, 20], [30, 30]]),
        "c": kind("mask", [[4, 6], [6, 7]], mask=png),
        "d": kind(None, LARGE),
        "e": kind("mask", [[58, 39], [60, 40]], mask=png),  # reaches out of the picture
    }
    for name, one in shapes.items():
        lisa(tmp_path, name, [one])
    found = [e.truth for e in open_dataset("reasonseg", tmp_path).examples(0, 9)]
    large = np.zeros(SIZE, bool)
    large[5:26, 10:31] = True
    assert np.array_equal(found[0], large) and np.array_equal(found[3], large)
    down, right = np.nonzero(found[1])
    assert (down.min(), down.max(), right.min(), right.max()) == (10, 30, 20, 40)
    assert found[1].sum() == pytest.approx(np.pi * 100, rel=0.03)
    there = np.zeros(SIZE, bool)
    there[6:8, 4:7] = pasted
    assert np.array_equal(found[2], there)
    assert [tuple(at) for at in np.argwhere(found[4])] == [(39, 58)]


@pytest.mark.parametrize("name", ["line", "linestrip", "point", "points", "ellipse", 3, ["a"]])
def test_shapes_without_an_area_or_of_another_kind_are_refused(tmp_path, name):
    lisa(tmp_path, "a", [kind(name, LARGE), kind("polygon", LARGE)])
    said = "is not known" if name in ("ellipse", 3, ["a"]) else "has no area"
    with pytest.raises(CoPRSError, match=f"shape of the kind .*{said}: draw it as a polygon"):
        open_dataset("reasonseg", tmp_path).item(0)
    lisa(tmp_path, "a", [kind(name, LARGE, "flag"), kind("polygon", LARGE)])
    assert open_dataset("reasonseg", tmp_path).item(0).masks  # a flag means nothing anyway


@pytest.mark.parametrize(
    "wrong",
    [
        *([[1e9, 5], [30, 5], [30, 25]], [[NAN, 5], [30, 5], [30, 25]], [[-1e300, 5], [3, 5]], []),
        *([[INF, 5], [30, 5], [30, 25]], None, [["a", "b"]], [[0, 0], [90_000, 90_000]] * 100),
    ],
)
def test_one_wrong_shape_beside_good_ones_is_left_out_and_counted(tmp_path, wrong):
    lisa(tmp_path, "a", [kind("polygon", LARGE), kind("polygon", wrong)])
    lisa(tmp_path, "b", [kind("rectangle", wrong)])
    lisa(tmp_path, "c", [kind("mask", LARGE, mask="no picture"), kind("polygon", INSIDE)])
    dataset = open_dataset("reasonseg", tmp_path)
    assert dataset.item(0).left_out == 1 and dataset.item(0).truth.sum() == 21 * 21
    with pytest.raises(CoPRSError, match="b.json is not in LISA's layout"):
        dataset.item(1)
    assert dataset.item(2).left_out == 1 and dataset.item(2).truth.sum() == 36


def test_a_shape_that_is_none_is_left_out_and_a_label_may_be_a_number(tmp_path):
    lisa(tmp_path, "a", [None, 5, {"label": 3, "points": LARGE}])
    example = open_dataset("reasonseg", tmp_path).item(0)
    assert example.left_out == 2 and example.truth.sum() == 21 * 21


def test_many_shapes_take_no_memory_each():
    shapes = [kind("polygon", LARGE)] * 300
    tracemalloc.start()
    target, _, _ = rasterize_shapes(shapes, (500, 1000), "it")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert target.sum() == 21 * 21 and peak < 20_000_000


def test_photos_of_reasonseg_with_other_endings_and_by_products(tmp_path):
    for name in ("a", "b"):
        lisa(tmp_path, name, [shape("target", LARGE)])
    folder = tmp_path / "ReasonSeg/val"
    (folder / "a.jpg").rename(folder / "a.JPG")
    (folder / "b.jpg").rename(folder / "b.jpeg")
    (folder / "._a.json").write_bytes(b"\0\5\26\7")
    dataset = open_dataset("reasonseg", tmp_path)
    assert dataset.num_items == 2 and all(e.masks for e in dataset.examples(0, 9))
    told = {"text": "穿红衣服的人", "shapes": [], "is_sentence": True}
    (folder / "a.json").write_bytes(json.dumps(told, ensure_ascii=False).encode("gbk"))
    with pytest.raises(CoPRSError, match="neither UTF-8 nor English in cp1252"):
        dataset.item(0)


# --- gRefCOCO


def generalized(root: Path) -> Path:
    def ref(number, annotations, image, split, *sents, **more):
        told = {"ref_id": number, "ann_id": annotations, "image_id": image, "split": split}
        return told | {"sentences": [{"sent": s, "raw": s} for s in sents]} | more

    folder = root / "grefcoco"
    folder.mkdir(parents=True)
    told = [
        ref(1, [11], 1, "val", "the cat", no_target=False),
        ref(2, [13, 12], 2, "val", "both cats", "all of them", no_target=False),
        ref(3, [-1], 2, "val", "the dog", no_target=True),
        ref(4, [], 1, "testA", "a bird", no_target=True),
        ref(5, [-1], 1, "testB", "a fish"),
        ref(6, 11, 1, "train", "cat"),
    ]
    (folder / "grefs(unc).json").write_text(json.dumps(told))
    instances = annotations()
    instances["annotations"][1]["segmentation"] = [OTHER]
    (folder / "instances.json").write_text(json.dumps(instances))
    pictures = root / "train2014"
    pictures.mkdir()
    for n in (1, 2):
        (pictures / f"COCO_train2014_{n:012}.jpg").write_bytes(jpeg(n))
    return root


def test_grefcoco_means_one_thing_several_or_none(tmp_path):
    root = generalized(tmp_path)
    dataset = open_dataset("grefcoco", root)
    assert dataset.split == "val" and dataset.num_items == 4
    examples = list(dataset.examples(0, 9))
    assert [e.instruction for e in examples] == ["the cat", "both cats", "all of them", "the dog"]
    assert [len(e.masks) for e in examples] == [1, 2, 2, 0]
    assert [e.tags["things"] for e in examples] == ["one", "several", "several", "none"]
    box, other = (decode_segmentation([p], SIZE, "it") for p in (BOX, OTHER))
    assert np.array_equal(examples[1].masks[0], box)  # in reading order
    assert np.array_equal(examples[1].masks[1], other)
    assert np.array_equal(examples[1].truth, box | other) and not examples[3].truth.any()
    assert {"nothing there", "several", "one thing"} <= dataset.groups.keys()
    for split in ("testA", "testB"):
        (example,) = open_dataset("grefcoco", root, split).examples(0, 9)
        assert example.masks == ()
    (example,) = open_dataset("grefcoco", root / "grefcoco", "train").examples(0, 9)
    assert np.array_equal(example.truth, box)
    with pytest.raises(CoPRSError, match=r"no grefcoco, split val: looked for .*grefs\(…\)\.json"):
        open_dataset("grefcoco", tmp_path / "train2014")


def test_one_wrong_object_is_one_item_and_not_the_whole_data_set(tmp_path):
    root = classic(tmp_path)
    told = refs()
    told[1]["ann_id"] = 99
    told[2] |= {"split": "val", "sentences": None}
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(told))
    with pytest.raises(CoPRSError, match="not in the layout"):  # before a training begins
        open_dataset("refcoco", root, "val")
    dataset = open_dataset("refcoco", root, "val", is_lenient=True)
    assert dataset.num_items == 4 and dataset.item(0).masks
    with pytest.raises(CoPRSError, match="Item 2 of .* is not in the layout"):
        dataset.item(2)
    with pytest.raises(CoPRSError, match="item 3 of .* cannot be asked"):
        dataset.item(3)
    told += [5, {"split": "val", "ann_id": {}, "sentences": [{"sent": 5}]}]
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(told))
    instances = annotations()
    instances["annotations"] += [None, {"id": [1]}]
    instances["images"].append({})
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances))
    dataset = open_dataset("refcoco", root, "val", is_lenient=True)
    assert dataset.num_items == 6 and dataset.item(0).masks
    said = [dataset.try_read(i).problem for i in (4, 5)]
    assert all("cannot be asked" in one for one in said), said
