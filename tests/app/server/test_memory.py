"""Memory of the running app: the answers of many visitors, and small zips of much."""

import io
import itertools
import json
import struct
import threading
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from coprs_core import CoPRSError
from coprs_core.export.archive import open_answer, pixels_in, save_zip
from coprs_core.photos.photo import open_photo
from tests.app.server.test_guard import HTTP, last_message, started

PORT = 17875
VISITORS = 40


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The app in a process of its own: (its address, the process)."""
    folder = tmp_path_factory.mktemp("temporary")
    process = started(folder, PORT)
    yield f"http://127.0.0.1:{PORT}/", psutil.Process(process.pid)
    process.kill()


class Page:
    """The page's buttons, as a browser presses them, for any number of visitors."""

    def __init__(self, url: str):
        self.url, config = url, HTTP.get(f"{url}config").json()
        self._numbers = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        self._events = [d for d in config["dependencies"] if d["backend_fn"]]

    def press(self, button: str, trigger: str, data: list, visitor: str) -> dict:
        """What the event of a button says last."""
        target = [self._numbers[button], trigger]
        event = next(d for d in self._events if target in [list(t) for t in d["targets"]])
        body = {"fn_index": event["id"], "session_hash": visitor, "data": data}
        assert HTTP.post(f"{self.url}gradio_api/queue/join", json=body).status_code == 200
        return last_message(self.url, visitor)

    def upload(self, name: str, content: bytes) -> dict:
        sent = HTTP.post(f"{self.url}gradio_api/upload", files={"files": (name, content)})
        return {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}


@contextmanager
def peak_of(process: psutil.Process):
    """Inside, the most memory that a process takes is watched; gives a list that ends up with it."""
    peak, done = [process.memory_info().rss], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def large_photo(number: int) -> bytes:
    """A JPEG of 12 megapixels that no other number gives."""
    stripes = np.add.outer(np.arange(3000) // 7, np.arange(4000) // 11)
    pixels = np.stack([stripes % 251, (stripes * 3 + number) % 241, stripes % 13 * 9], axis=-1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def test_the_answers_of_many_visitors_take_bounded_memory(running):
    url, process = running
    page = Page(url)

    def ask(number: int) -> dict:
        photo = page.upload("photo.jpg", large_photo(number))
        return page.press("anyway", "click", [photo, "the largest thing", None], f"v{number}")

    assert ask(0)["success"]  # what is loaded with the first answer is no visitor's
    before = process.memory_info().rss
    for number in range(1, VISITORS + 1):
        assert ask(number)["success"]
    grown = process.memory_info().rss - before
    print(f"{VISITORS} visitors with a photo of 12 megapixels each: {grown / 1e6:+.0f} MB")
    assert grown < 500e6
    for number in (VISITORS, VISITORS - 1, VISITORS - 9):
        taken = page.press("take-link", "click", [None], f"v{number}")
        assert taken["success"], (number, taken)


# --- zips


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


def test_small_zips_of_much_take_bounded_memory(running, hostile):
    url, process = running
    clients = [Client(url, verbose=False) for _ in range(16)]
    for name, path in hostile.items():

        def opened(client: Client, path=path) -> str:
            try:
                return client.predict(handle_file(path), api_name="/open")["outcome"]
            except Exception as problem:  # whatever the client makes of it
                return str(problem)

        before = process.memory_info().rss
        count = 4 if "8 regions" in name else 16  # a legal answer, of some seconds each
        with peak_of(process) as peak, ThreadPoolExecutor(count) as pool:
            said = set(pool.map(opened, clients[:count]))
        print(f"{path.stat().st_size / 1e3:.1f} kB, {name}, {count} at once: ", end="")
        print(f"+{(peak[0] - before) / 1e6:.0f} MB; {said}")
        assert peak[0] - before < 1.5e9, name
        assert len(said) == 1 and len(next(iter(said))) < 400, said
        assert said == {"found"} if "region" in name else "answer" in next(iter(said)), said


def test_an_upload_of_such_a_zip_on_the_page_takes_bounded_memory(running, hostile):
    url, process = running
    page = Page(url)

    def opened(number: int, content: bytes) -> bool:
        file = page.upload("answer.zip", content)
        said = page.press("saved", "upload", [file, None], f"z{number}")
        assert said["success"], said["output"]
        return True

    content = hostile["8 regions of 12 million"].read_bytes()
    before = process.memory_info().rss
    with peak_of(process) as peak, ThreadPoolExecutor(4) as pool:
        assert all(pool.map(opened, range(4), [content] * 4))
    print(f"8 regions of 12 million, 4 pages at once: +{(peak[0] - before) / 1e6:.0f} MB")
    assert peak[0] - before < 1.5e9


def test_a_zip_is_weighed_before_it_is_read(tmp_path, found, hostile):
    height, width = found[2].photo_size
    plain = zipped(tmp_path, found)
    with zipfile.ZipFile(plain) as archive:
        text = archive.getinfo("result.json").file_size
    assert pixels_in(plain) == 2 * height * width + 4 * text
    assert pixels_in(hostile["8 regions of 12 million"]) > 9 * 3464**2
    assert pixels_in(hostile["tables"]) > 12_000_000
    (tmp_path / "none.zip").write_bytes(b"PK\x05\x06" + b"\0" * 40)
    assert pixels_in(tmp_path / "none.zip") == pixels_in(tmp_path / "missing.zip") == 0


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
    pixels_in(path)
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
