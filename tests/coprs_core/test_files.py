"""Texts in their encodings, names in both Unicode forms, by-products of file systems, and photos that EXIF turns."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from coprs_core.__main__ import main
from coprs_core.batch import find_examples, find_photos
from coprs_core.checkpoints.downloads import missing_shards
from coprs_core.checkpoints.hugging_face import weight_files
from coprs_core.commands.options import read_prompt
from coprs_core.datasets import open_dataset
from coprs_core.datasets.folder import LISTING
from coprs_core.errors import CoPRSError
from coprs_core.files import check_no_mojibake, find_file, read_text, repair_cp1252
from coprs_core.photos.orientation import to_upright_array, to_upright_mask
from coprs_core.photos.photo import read_orientation
from coprs_core.training.recipe import read_toml

NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_text_says_its_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("the café\n帽子", encoding=encoding)
    assert read_text(tmp_path / "a.txt") == "the café\n帽子"


@pytest.mark.parametrize(
    "text, encoding",
    [
        ("find\nthe café", "cp1252"),
        ("穿红衣服的人", "gbk"),
        ("傘を持つ人", "shift-jis"),
        ("кошка", "cp1251"),
        ("the cat", "utf-16-le"),  # without the mark that tells it
    ],
)
def test_another_encoding_is_refused_and_never_read_as_rubbish(tmp_path, text, encoding):
    photo = Image.new("RGB", (8, 8))
    photo.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(CoPRSError, match=r"a\.txt is no UTF-8 text .*: write it so\."):
        open_dataset("folder", tmp_path)
    row = json.dumps({"photo": "a.png", "instruction": text, "masks": []}, ensure_ascii=False)
    for name in (LISTING, "many.jsonl"):
        (tmp_path / name).write_bytes(row.encode(encoding))
    with pytest.raises(CoPRSError, match=r"items\.jsonl is no UTF-8 text"):
        open_dataset("folder", tmp_path)
    with pytest.raises(CoPRSError, match=r"many\.jsonl is no UTF-8 text"):
        find_examples(str(tmp_path / "many.jsonl"), None)
    (tmp_path / "prompt.txt").write_bytes(text.encode(encoding))
    with pytest.raises(CoPRSError, match="cannot be read .*: give a text file"):
        read_prompt(tmp_path / "prompt.txt")


def test_what_a_wrong_decoding_left_is_not_asked(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for rubbish in ("the caf\ufffd", "the hat\x92s owner", "t\0h\0e", "the cafÃ©", "a hatâ€™s"):
        row = json.dumps({"photo": "a.png", "instruction": rubbish, "masks": []})
        (tmp_path / LISTING).write_text(row)
        with pytest.raises(CoPRSError, match="line 1 of .* cannot be asked.*another encoding"):
            open_dataset("folder", tmp_path)
        with pytest.raises(CoPRSError, match="another encoding"):
            find_examples(str(tmp_path / LISTING), None)
    assert check_no_mojibake("the café’s 帽子\n", "it") == "the café’s 帽子\n"


def test_english_in_cp1252_is_told_from_other_encodings():
    def read(text: str, encoding: str) -> str:
        return repair_cp1252(text.encode(encoding).decode("utf-8", "surrogateescape"), "a.json")

    for text in ("the café", "the “old” hat – Zoë’s", "“été”", "naïve", "plain", "帽子 é"):
        encoding = "utf-8" if "帽" in text else "cp1252"
        assert read(text, encoding) == text
    for text, encoding in (("穿红衣服的人", "gbk"), ("傘を持つ人", "shift-jis"), ("кот", "cp1251")):
        with pytest.raises(CoPRSError, match=r"a\.json is neither UTF-8 nor English in cp1252"):
            read(text, encoding)
    assert read("帽" * 200_000, "utf-8").endswith("帽")  # in time that grows with its length


def test_a_mark_of_bytes_is_no_part_of_a_text(tmp_path):
    photo = Image.new("RGB", (8, 8))
    photo.save(tmp_path / "a.png")
    for name in (LISTING, "many.jsonl"):
        (tmp_path / name).write_text(
            json.dumps({"photo": "a.png", "instruction": "it", "masks": []}), encoding="utf-8-sig"
        )
    assert open_dataset("folder", tmp_path).item(0).instruction == "it"
    assert find_examples(str(tmp_path / "many.jsonl"), None)[0].instruction == "it"
    (tmp_path / "prompt.txt").write_text("{image} {instruction}", encoding="utf-8-sig")
    assert read_prompt(tmp_path / "prompt.txt") == "{image} {instruction}"
    (tmp_path / "a.toml").write_text("steps = 3\n", encoding="utf-8-sig")
    assert read_toml(tmp_path / "a.toml") == {"steps": 3}


@pytest.mark.parametrize("stored, written", [(NFC, NFD), (NFD, NFC)])
def test_names_are_found_in_either_unicode_form(tmp_path, stored, written):
    folder = tmp_path / f"folder {stored}"
    folder.mkdir()
    Image.new("RGB", (8, 6)).save(folder / f"caf{stored}.PNG")
    truth = np.zeros((6, 8), bool)
    truth[1:3, 2:5] = True
    Image.fromarray(truth).save(folder / f"caf{stored}_mask.png")
    asked = tmp_path / f"folder {written}"
    assert find_file(asked / f"caf{written}.png") == folder / f"caf{stored}.PNG"
    assert find_file(asked / "gone.png").name == "gone.png"
    row = {"photo": f"caf{written}.png", "instruction": "it", "masks": [f"caf{written}_mask.png"]}
    (folder / LISTING).write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert np.array_equal(open_dataset("folder", folder).item(0).truth, truth)
    (item,) = find_examples(str(asked / LISTING), None)
    assert Path(item.photo).is_file()
    assert find_photos(str(asked / f"caf{written}.png")) == [str(folder / f"caf{stored}.PNG")]
    assert find_photos(str(folder / f"caf{written}.*"))[0].endswith("PNG")
    (folder / LISTING).unlink()
    (folder / f"caf{written}.TXT").write_text("it")
    beside = open_dataset("folder", asked)
    assert beside.num_items == 1 and np.array_equal(beside.item(0).truth, truth)


def test_what_begins_with_a_dot_is_no_photo_no_item_and_no_weight(tmp_path):
    """As macOS leaves them on disks of other systems, and in zips."""
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (8, 6)).save(photos / "a.JPG")
    Image.new("RGB", (8, 6)).save(photos / "b.png")
    (photos / "a.txt").write_text("it")
    for name in ("._a.JPG", "._b.png", "._a.txt", "._a_mask.png", ".DS_Store", "._.DS_Store"):
        (photos / name).write_bytes(b"\0\5\26\7")
    assert [Path(p).name for p in find_photos(str(photos))] == ["a.JPG", "b.png"]
    assert [Path(p).name for p in find_photos(f"file://{photos}/*.[jpJP]*")] == ["a.JPG", "b.png"]
    assert [Path(p).name for p in find_photos(str(photos / "*.jpg"))] == ["a.JPG"]
    dataset = open_dataset("folder", photos)
    assert dataset.num_items == 1 and dataset.item(0).masks == ()
    weights = tmp_path / "mllm"
    weights.mkdir()
    for name in ("._model.safetensors", "._model.safetensors.index.json"):
        (weights / name).write_bytes(b"\0\5\26\7")
    assert missing_shards(weights) == ["*.safetensors"]
    (weights / "model.safetensors").write_bytes(b"")
    assert weight_files(weights) == [weights / "model.safetensors"]


# --- photos that EXIF turns

EXAMPLE = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_as_pillow_turns_a_photo(orientation):
    stored = Image.fromarray(EXAMPLE)
    stored.getexif()[0x0112] = orientation
    shown = np.asarray(ImageOps.exif_transpose(stored))
    assert read_orientation(stored) == orientation
    assert np.array_equal(to_upright_array(EXAMPLE, orientation), shown)
    if orientation >= 5:
        assert np.array_equal(to_upright_mask(EXAMPLE, shown.shape, orientation), shown)
        assert np.array_equal(to_upright_mask(shown, shown.shape, orientation), shown)
    elif orientation > 1:
        with pytest.raises(CoPRSError, match=f"EXIF tag turns it .orientation {orientation}"):
            to_upright_mask(EXAMPLE, shown.shape, orientation)


def turned_photo(path: Path, size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)


def test_a_mask_of_a_turned_photo_is_taken_where_it_fits(tmp_path):
    truth = np.zeros((6, 8), bool)
    truth[1:3, 2:5] = True  # on the stored pixels
    turned_photo(tmp_path / "a.jpg", (8, 6), 6)
    (tmp_path / "a.txt").write_text("it")
    for mask in (truth, np.rot90(truth, -1)):
        Image.fromarray(mask).save(tmp_path / "a_mask.png")
        example = open_dataset("folder", tmp_path).item(0)
        assert example.size == (8, 6) and np.array_equal(example.truth, np.rot90(truth, -1))
    Image.new("1", (5, 5)).save(tmp_path / "a_mask.png")
    with pytest.raises(CoPRSError, match="true mask has 5×5 pixels and the photo 6×8"):
        open_dataset("folder", tmp_path).item(0)


@pytest.mark.parametrize("size, orientation", [((8, 8), 6), ((8, 6), 3), ((8, 6), 2), ((8, 8), 4)])
def test_a_mask_that_fits_both_ways_is_refused(tmp_path, size, orientation):
    turned_photo(tmp_path / "a.jpg", size, orientation)
    (tmp_path / "a.txt").write_text("it")
    truth = np.zeros(size[::-1], bool)
    truth[0, :2] = True
    Image.fromarray(truth).save(tmp_path / "a_mask.png")
    with pytest.raises(CoPRSError, match="a_mask.png cannot be used.*EXIF tag.*save the photo upr"):
        open_dataset("folder", tmp_path).item(0)
    exif = Image.Exif()
    exif[0x0112] = orientation  # the mask has the photo's tag: both are stored alike
    Image.fromarray(truth).save(tmp_path / "a_mask.png", exif=exif)
    found_there = open_dataset("folder", tmp_path).item(0).truth
    assert np.array_equal(found_there, to_upright_array(truth, orientation))
    Image.new("1", size, 1).save(tmp_path / "a_mask.png")  # turned or not, it is the same
    assert open_dataset("folder", tmp_path).item(0).truth.all()


def test_the_truth_of_a_turned_photo_on_the_command_line(tmp_path, capsys):
    turned_photo(tmp_path / "a.jpg", (300, 200), 6)
    truth = np.zeros((200, 300), bool)
    truth[20:80, 30:90] = True
    Image.fromarray(truth).save(tmp_path / "true.png")
    asked = ["segment", str(tmp_path / "a.jpg"), "the cat", "--truth", str(tmp_path / "true.png")]
    assert main([*asked, "--out", str(tmp_path / "out")]) in (0, 3, 4)
    assert (tmp_path / "out" / "truth.json").is_file(), capsys.readouterr()


def test_void_of_a_palette_is_neither_right_nor_wrong(tmp_path):
    indices = np.zeros((6, 8), np.uint8)
    indices[1:4, 1:4], indices[0, :], indices[5, 5] = 15, 255, 3
    picture = Image.fromarray(indices, "P")
    colours = np.random.default_rng(0).integers(0, 255, (256, 3), np.uint8)
    picture.putpalette(colours.ravel().tolist())
    picture.save(tmp_path / "a_mask.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("it")
    example = open_dataset("folder", tmp_path).item(0)
    assert np.array_equal(example.truth, (indices == 15) | (indices == 3))
    assert np.array_equal(example.ignore, indices == 255)
    picture = Image.fromarray(np.where(indices == 15, 255, 0).astype(np.uint8), "P")
    picture.putpalette(colours.ravel().tolist())
    picture.save(tmp_path / "a_mask.png")  # 255 alone is the thing
    example = open_dataset("folder", tmp_path).item(0)
    assert np.array_equal(example.truth, indices == 15) and example.ignore is None
