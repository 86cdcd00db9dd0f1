"""Memory of the running app: the answers of many visitors, and small zips of much."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from tests.app.server.test_guard import HTTP, last_message, started
from tests.coprs_core.export.test_archive import hostile  # noqa: F401  (a fixture)

VISITORS = 20  # their photos alone would take 720 MB


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The app in a process of its own: (its address, the process)."""
    folder = tmp_path_factory.mktemp("temporary")
    process, url = started(folder)
    yield url, psutil.Process(process.pid)
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


def test_small_zips_of_much_take_bounded_memory(running, hostile):  # noqa: F811
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


def test_an_upload_of_such_a_zip_on_the_page_takes_bounded_memory(running, hostile):  # noqa: F811
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
