"""Zips of answers that a stranger made: how much they hold is known before they are read."""

import io
import itertools
import json
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from coprs_core import CoPRSError
from coprs_core.export.archive import count_pixels, open_answer, save_zip
from coprs_core.photos.photo import open_photo


def zipped(folder, found, **files: bytes):
    """An answer's zip with some of its files made otherwise."""
    path = folder / "whole.zip"
    if not path.exists():
        save_zip(path, open_photo(found[0].image), found[2])
    with zipfile.ZipFile(path) as archive:
        whole = {name: archive.read(name) for name in archive.namelist()}
    whole |= {name.replace("__", "."): content for name, content in files.items()}
    hostile = folder / f"{next(_numbers)}.zip"
    with zipfile.ZipFile(hostile, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in whole.items():
            archive.writestr(name, content)
    return hostile


_numbers = itertools.count()


def png(size: tuple[int, int], mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def flat_answer(result: dict, side: int, count: int) -> dict[str, bytes]:
    """The files of an answer of so many whole regions about a flat photo."""
    region = result["regions"][0]
    region = region | {"mask": {"size": [side, side], "counts": [0, side * side]}, "area": side**2}
    values = result | {"photo_size": [side, side], "regions": [region] * count, "full_size": None}
    prior = io.BytesIO()
    np.save(prior, np.zeros((side, side), np.float32))
    names = ["prior__npy"] if count == 1 else [f"prior_{i + 1}__npy" for i in range(count)]
    files = {"result__json": json.dumps(values).encode(), "photo__png": png((side, side))}
    return files | dict.fromkeys(names, prior.getvalue())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, found):
    """Zips of a few kB that hold much, by what they hold."""
    folder = tmp_path_factory.mktemp("zips")
    answer = found[2].to_dict()
    return {
        "a flat photo of 67 million pixels": zipped(folder, found, photo__png=png((8192, 8192))),
        "one of 16 bits": zipped(folder, found, photo__png=png((3464, 3464), "I;16")),
        "one with transparency": zipped(folder, found, photo__png=png((3464, 3464), "RGBA")),
        "8 regions of 12 million": zipped(folder, found, **flat_answer(answer, 3464, 8)),
        "one region of 12 million": zipped(folder, found, **flat_answer(answer, 3464, 1)),
        "tables": zipped(folder, found, result__json=b"[" + b"{}," * 5_000_000 + b"{}]"),
        "numbers": zipped(folder, found, result__json=b"[" + b"1000," * 3_190_000 + b"0]"),
        "texts": zipped(folder, found, result__json=b"[" + b'"ab",' * 3_190_000 + b"0]"),
    }


def test_a_zip_is_weighed_before_it_is_read(tmp_path, found, hostile):
    height, width = found[2].photo_size
    plain = zipped(tmp_path, found)
    with zipfile.ZipFile(plain) as archive:
        text = archive.getinfo("result.json").file_size
    assert count_pixels(plain) == 2 * height * width + 4 * text
    assert count_pixels(hostile["8 regions of 12 million"]) > 9 * 3464**2
    assert count_pixels(hostile["tables"]) > 12_000_000
    (tmp_path / "none.zip").write_bytes(b"PK\x05\x06" + b"\0" * 40)
    assert count_pixels(tmp_path / "none.zip") == count_pixels(tmp_path / "missing.zip") == 0


def long_list(told: bytes) -> bytes:
    """A zip of nothing but a list of 9.4 MB, and its end, which tells another length."""
    entry = b"PK\x01\x02" + struct.pack("<4B4H3L5H2L", 20, 0, 20, 0, *[0] * 7, 1, *[0] * 6) + b"a"
    entries = entry * 200_000
    whole = len(entries)
    if told == b"PK\x05\x06":  # the end's own mark, once more inside of it
        end = told + bytes(4) + told + struct.pack("<LLH", whole, 0, 0)
    else:  # the right length stands in the records for large zips
        end = b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 1, 1, whole, 0)
        end += b"PK\x06\x07" + struct.pack("<LQL", 0, whole, 1)
        end += b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, 50, 0, 0)
    return entries + end


def packed_otherwise(kind: int, name: str, photo: bytes) -> bytes:
    """A zip in which a file of 200 MB is packed in a way that ours are not."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        if name != "photo.png":
            archive.writestr("photo.png", photo, zipfile.ZIP_DEFLATED)
        with archive.open(name, "w") as inside:
            for _ in range(200):
                inside.write(bytes(1_000_000))
    return file.getvalue()


def zip_for_a_prior(found) -> dict[str, bytes]:
    """The files of an answer of 4 million pixels, whose prior is a zip with a long list."""
    files = flat_answer(found[2].to_dict(), 2048, 1)
    inside = long_list(b"PK\x05\x06")
    return files | {"prior__npy": b"PK\x03\x04" + inside}


NO_ZIP_OF_OURS = {
    "a photo in bzip2": lambda f: packed_otherwise(zipfile.ZIP_BZIP2, "photo.png", b""),
    "texts in bzip2": lambda f: packed_otherwise(zipfile.ZIP_BZIP2, "result.json", png((9, 9))),
    "texts in LZMA": lambda f: packed_otherwise(zipfile.ZIP_LZMA, "result.json", png((9, 9))),
    "a list of files that tells two lengths": lambda f: long_list(b"PK\x05\x06"),
    "a list of files with two ends": lambda f: long_list(b"PK\x06\x06"),
    "a zip in place of a prior": zip_for_a_prior,
    "regions that are a text": lambda f: {
        "result__json": json.dumps(f[2].to_dict() | {"regions": "a" * 3_000_000}).encode()
    },
}


@pytest.mark.parametrize("what", NO_ZIP_OF_OURS)
def test_what_a_stranger_says_of_a_zip_costs_nothing(tmp_path, found, what):
    made = NO_ZIP_OF_OURS[what](found)
    path = tmp_path / "hostile.zip"
    if isinstance(made, dict):
        path = zipped(tmp_path, found, **made)
    else:
        path.write_bytes(made)
    most = 50e6 if "prior" in what else 12e6  # with a photo of 4 million pixels
    del made
    tracemalloc.start()
    count_pixels(path)
    before_it_is_read = tracemalloc.get_traced_memory()[1]
    with pytest.raises(CoPRSError, match="answer"):
        open_answer(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{what}: {before_it_is_read / 1e6:.1f} and {peak / 1e6:.1f} MB")
    assert before_it_is_read < 2e6 and peak < most


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "I;16", "1"])
def test_a_photo_in_another_mode_is_none_of_ours(tmp_path, found, mode):
    height, width = found[2].photo_size
    with pytest.raises(Exception, match="saved answer"):
        open_answer(zipped(tmp_path, found, photo__png=png((width, height), mode)))
