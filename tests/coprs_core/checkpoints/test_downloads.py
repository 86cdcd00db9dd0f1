"""Downloads, from a stand-in for Hugging Face and SAM's host on this machine: progress, resuming,
disk, cache, sentences."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from coprs_core import CoPRSError
from coprs_core.checkpoints import downloads
from coprs_core.checkpoints.load import MINIATURE_FOLDER
from tests import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Host(BaseHTTPRequestHandler):
    """Enough of the hub's HTTP interface for one repository "a/model", and plain files with ranges
    under /sam."""

    def __init__(self, files, log, *args):
        self.files, self.log = files, log
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer()

    def answer(self, body=True):
        path = self.path.partition("?")[0]
        self.log.append((self.command, path, self.headers.get("Range")))
        listing = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in self.files.items() if "/" not in n]  # fmt: skip
        if path.startswith("/api/models/a/model/tree"):
            return self.send(json.dumps(listing).encode(), body)
        if path.startswith("/api/models/a/model"):
            info = {
                "id": "a/model",
                "sha": COMMIT,
                "siblings": [{"rfilename": f["path"]} for f in listing],
            }
            return self.send(json.dumps(info).encode(), body)
        name = path.removeprefix(f"/a/model/resolve/{COMMIT}/").lstrip("/")
        if name not in self.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return None
        return self.send(self.files[name], body)

    def send(self, content, body):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content[start:])


@pytest.fixture
def host():
    content = {
        str(p.relative_to(MINIATURE_FOLDER / "mllm")): p.read_bytes()
        for p in (MINIATURE_FOLDER / "mllm").iterdir()
    }
    weights = os.urandom(3_000_000)
    digest = hashlib.sha256(weights).hexdigest()[:6]
    files, log = content | {f"sam/sam_vit_t_{digest}.pth": weights}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Host, files, log))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files, log
    server.shutdown()


def fetch(code: str, url: str, cache: Path, **more) -> subprocess.CompletedProcess:
    """Run a line in a fresh process, since the hub's settings are read when it is imported."""
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"} | more
    prelude = "from coprs_core.checkpoints.downloads import *; from coprs_core import CoPRSError\n"
    return subprocess.run([sys.executable, "-c", prelude + code], cwd=ROOT, env=environment, capture_output=True, text=True)  # fmt: skip


SNAPSHOT = """
lines = []
try:
    print(download_snapshot("a/model", lines.append)); print(len(lines), lines[-1:] )
except CoPRSError as e:
    print("said:", e)
"""


def test_a_repository_is_downloaded_once_with_progress_and_then_needs_no_network(host, tmp_path):
    url, files, log = host
    first = fetch(SNAPSHOT, url, tmp_path)
    folder = Path(first.stdout.splitlines()[0])
    assert all(
        (folder / n).read_bytes() == files[n]
        for n in ("config.json", "model.safetensors", "tokenizer.json")
    )
    assert "Downloading a/model: " in first.stdout and "MB" in first.stdout
    log.clear()
    again = fetch(SNAPSHOT, "http://127.0.0.1:9", tmp_path)
    assert Path(again.stdout.splitlines()[0]) == folder and not log
    offline = fetch(SNAPSHOT, url, tmp_path, HF_HUB_OFFLINE="1")
    assert Path(offline.stdout.splitlines()[0]) == folder and not log


def test_a_download_that_was_cut_fetches_what_is_missing_alone(host, tmp_path):
    url, files, log = host
    folder = Path(fetch(SNAPSHOT, url, tmp_path).stdout.splitlines()[0])
    (folder / "model.safetensors").resolve().unlink()
    (folder / "model.safetensors").unlink()
    log.clear()
    again = fetch(SNAPSHOT, url, tmp_path)
    assert (Path(again.stdout.splitlines()[0]) / "model.safetensors").read_bytes() == files[
        "model.safetensors"
    ]
    assert {p.rpartition("/")[2] for m, p, _ in log if m == "GET" and "/resolve/" in p} == {
        "model.safetensors"
    }


OPEN = """
from coprs_core.checkpoints.tensors import count_parameters
try:
    print("weights:", count_parameters(download_snapshot("a/model") / "model.safetensors"))
except CoPRSError as problem:
    print("said:", problem)
"""


def test_what_is_cut_short_in_the_cache_is_said_and_fetched_again_once_deleted(host, tmp_path):
    folder = Path(fetch(SNAPSHOT, host[0], tmp_path).stdout.splitlines()[0])
    stored = (folder / "model.safetensors").resolve()
    stored.write_bytes(stored.read_bytes()[:1_000_000])
    said = fetch(OPEN, host[0], tmp_path).stdout
    assert "model.safetensors is broken (" in said
    assert said.endswith(f": delete {stored}, and it is downloaded again.\n")
    stored.unlink()
    assert "weights: (" in fetch(OPEN, host[0], tmp_path).stdout


def test_a_cache_that_cannot_be_written_to_is_said(host, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    run = fetch(SNAPSHOT, host[0], tmp_path / "cache")
    assert "said: a/model cannot be written into the cache" in run.stdout, run.stderr[-900:]
    assert "set HF_HOME" in run.stdout


@pytest.mark.parametrize("code, words", [
    (SNAPSHOT.replace("a/model", "no/model"), "There is no model 'no/model' on Hugging Face"),
    (SNAPSHOT.replace("try:", "downloads = sys.modules['coprs_core.checkpoints.downloads']\ndownloads.free_disk = lambda f: 1000\ntry:").replace("\nlines", "\nimport sys\nlines", 1), "needs 10 MB of disk"),
    (SNAPSHOT.replace("a/model", "a model"), "There is no model 'a model'"),
])  # fmt: skip
def test_what_can_go_wrong_is_said(host, tmp_path, code, words):
    run = fetch(code, host[0], tmp_path)
    assert "said:" in run.stdout and words in run.stdout.replace("9 MB", "10 MB"), (
        run.stdout + run.stderr[-500:]
    )


@pytest.mark.parametrize("more", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_no_network_and_no_cache_is_said(tmp_path, more):
    run = fetch(SNAPSHOT, "http://127.0.0.1:9", tmp_path, **more)
    assert "said: a/model is not complete in the cache" in run.stdout, (
        run.stdout + run.stderr[-500:]
    )


@pytest.fixture
def sam(host, tmp_path, monkeypatch):
    url, files, log = host
    name = next(n for n in files if n.startswith("sam/")).removeprefix("sam/")
    monkeypatch.setenv("COPRS_SAM_URL", f"{url}/sam")
    monkeypatch.setattr(downloads, "SAM_FILES", {"vit_b": (name, len(files[f"sam/{name}"]))})
    monkeypatch.setattr(downloads, "sam_cache_folder", lambda: tmp_path / "checkpoints")
    return name, files[f"sam/{name}"], log


def test_sam_is_downloaded_once_with_progress(sam, tmp_path):
    name, content, log = sam
    lines = []
    path = downloads.download_sam_file("vit_b", lines.append)
    assert path == tmp_path / "checkpoints" / name and path.read_bytes() == content
    assert lines[-1] == f"Downloading {name}: 3 MB of 3 MB"
    log.clear()
    assert downloads.download_sam_file("vit_b") == path and not log


def test_sam_goes_on_where_it_stopped(sam, tmp_path):
    name, content, log = sam
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / f"{name}.part").write_bytes(content[:2_000_000])
    assert downloads.download_sam_file("vit_b").read_bytes() == content
    assert [r for _, _, r in log] == ["bytes=2000000-"]


def test_a_damaged_sam_is_thrown_away(sam, tmp_path):
    name, content, _ = sam
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / f"{name}.part").write_bytes(b"x" * 2_000_000)
    with pytest.raises(CoPRSError, match="was damaged"):
        downloads.download_sam_file("vit_b")
    assert not list((tmp_path / "checkpoints").iterdir())
    assert downloads.download_sam_file("vit_b").read_bytes() == content


def test_sam_without_network_or_disk_is_said(sam, monkeypatch):
    monkeypatch.setattr(downloads, "free_disk", lambda folder: 1000)
    with pytest.raises(CoPRSError, match="needs 3 MB of disk"):
        downloads.download_sam_file("vit_b")
    monkeypatch.undo()
    monkeypatch.setenv("COPRS_SAM_URL", "http://127.0.0.1:9")
    with pytest.raises(CoPRSError, match="cannot be downloaded"):
        downloads.download_sam_file("vit_b")
