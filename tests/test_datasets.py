"""Data sets of the field, in exactly their layouts, written small: polygons, run lengths, several sentences, wrong files."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from coprs_core.datasets import open_dataset
from coprs_core.datasets.folder import LISTING
from coprs_core.datasets.stored import mask_of, plain_pickle
from coprs_core.errors import CoPRSError

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
    mask = mask_of(segmentation, SIZE, "it")
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
        mask_of(wrong, SIZE, "annotation 7")


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
    assert dataset.size == 3 and "3 expressions of 2 objects" in dataset.about
    assert np.array_equal(examples[0].truth, MASK) and examples[0].photo.size == SIZE[::-1]
    assert examples[2].truth.sum() > examples[0].truth.sum()
    assert [e.tags["words"] for e in examples] == ["1 to 2", "6 and more", "1 to 2"]
    assert [e.index for e in dataset.examples(1, 1)] == [1] and dataset.examples(9, 5) is not None
    if name != "refcocog":
        (told,) = open_dataset(name, root, "testA").examples(0, 5)
        assert told.instruction == "a café on the left" and np.array_equal(told.truth, MASK)


def test_the_folder_of_the_refs_itself_may_be_given(tmp_path):
    root = classic(tmp_path)
    assert open_dataset("refcoco", root / "refcoco", "val").size == 3


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
    assert dataset.size == 4 and [np.array_equal(e.truth, MASK) for e in examples] == [
        *(True, True, False, True)
    ]
    assert open_dataset("refcoco", tmp_path, "train").size == 1


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
    assert dataset.size == 6 == len(examples) and np.array_equal(examples[5].truth, MASK)
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
    assert plain_pickle(tmp_path / "x.p") == told
    old = b"(dp0\nS'sent'\np1\nS'caf\xc3\xa9'\np2\ns."  # as Python 2 wrote text
    (tmp_path / "old.p").write_bytes(old)
    assert plain_pickle(tmp_path / "old.p") == {"sent": "café"}


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
        assert dataset.size == 3
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
        assert dataset.size == 2 and "ignore counts as target" in dataset.about
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
    assert open_dataset("folder", tmp_path).size == 1


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
