"""What breaks around the product: disks, permissions, memory, caches, a model in exchange. Each ends
in a sentence, and the next answer is right."""

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from app.server.guard import UPLOADS_FULL
from app.server.model import ModelServer
from app.ui import build, launch
from coprs_core.answer.engine import Engine
from coprs_core.checkpoints.load import MINIATURE_FOLDER
from coprs_core.errors import Cancelled
from coprs_core.photos.photo import open_photo
from tests import ROOT
from tests.app.server.test_guard import started
from tests.conftest import PATIENCE, held, held_steps, nobody_reads, slowed, until
from tests.coprs_core.model.backends.remote.test_proxies import Proxy

RAIN, WORDS = "assets/examples/rain.png", "something to stay dry with"
SMALL_FILE = 20_000
_DROP_FROM_BOUNDING_SET, _OVERRIDES = 24, (1, 2, 3)  # prctl's; what lets root write anywhere


def _without_privileges(largest_file: int | None = None) -> None:
    """In a process to be: root or not, permissions count; files may grow so far alone."""
    for capability in _OVERRIDES:
        ctypes.CDLL(None).prctl(_DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))


def run(*arguments: str, largest_file: int | None = None, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COPRS_DEVICE": "cpu"} | more,
        preexec_fn=partial(_without_privileges, largest_file),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.fixture
def read_only(tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)


# --- folders that cannot be written to


WRITING = (
    ("segment", RAIN, WORDS),
    ("segment", "assets/examples", WORDS),
    ("scenes", "--count", "1"),
    ("evaluate", "--limit", "1"),
    ("train", "mini"),
)
EACH = """
import sys
from coprs_core.__main__ import main
for command in {commands}:
    print(main([*command, "--out", {out!r}]), flush=True)
    print("next", file=sys.stderr, flush=True)
"""


def test_a_folder_that_cannot_be_written_to_is_named(read_only):
    """By each command, all in one process without privileges."""
    done = run("-c", EACH.format(commands=WRITING, out=str(read_only / "out")))
    *said, rest = done.stderr.split("next\n")
    assert done.returncode == 0 and done.stdout.split() == ["2"] * len(WRITING), done
    for told in said:
        assert told.count("error:") == 1 and "Traceback" not in told and str(read_only) in told
    assert not rest


@pytest.mark.parametrize("folder", ["", "further/down"])
def test_the_app_names_the_folder_that_it_cannot_use(read_only, folder):
    done = run("app.py", "--port", "17861", GRADIO_TEMP_DIR=str(read_only / folder))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: Permission denied ({read_only}" in done.stderr


# --- a full disk


def test_a_full_disk_is_said_and_the_folder_is_finished_later(tmp_path, mini):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in ("rain", "shirt"):
        shutil.copy(ROOT / f"assets/examples/{name}.png", photos)
    ask = "-m", "coprs_core", "segment", photos, WORDS, "--out", out
    full = run(*ask, largest_file=SMALL_FILE)
    assert full.returncode == 1 and "Traceback" not in full.stderr
    assert full.stderr.count("File too large: check the path, its permissions and the disk") == 2
    assert not list(out.rglob("asked.json"))
    later = run(*ask)
    assert later.returncode == 0 and len(list(out.rglob("asked.json"))) == 2
    told = json.loads((out / "rain.png" / "result.json").read_text())
    assert told["reply"] == mini.segment(ROOT / RAIN, WORDS).reply


def test_an_answer_that_could_not_be_replaced_is_not_taken_for_whole(tmp_path):
    ask = "-m", "coprs_core", "segment", "assets/examples/s[eh]*.png", "--out", tmp_path
    whole = (*ask[:4], WORDS, *ask[4:])
    assert run(*whole).returncode == 0
    assert run(*ask[:4], "the fish", *ask[4:], largest_file=SMALL_FILE).returncode == 1
    again = run(*whole)
    told = json.loads((tmp_path / "shirt.png" / "result.json").read_text())
    assert again.returncode == 0 and told["instruction"] == WORDS


def test_a_server_with_a_full_disk_says_so_and_goes_on(tmp_path):
    process, url = started(tmp_path)
    try:
        client = Client(url, verbose=False)
        photo = tmp_path / "noise.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), "uint8")).save(photo)
        first = client.predict(handle_file(ROOT / RAIN), WORDS, api_name="/segment")["result"]
        psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (SMALL_FILE, -1))
        with pytest.raises(Exception, match="507"):
            client.predict(handle_file(photo), WORDS, api_name="/segment")
        uploaded = {"path": str(next(tmp_path.glob("coprs-uploads*/*/rain.png")))}
        with pytest.raises(Exception, match=UPLOADS_FULL):
            client.predict(uploaded, first, api_name="/download")
        psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (-1, -1))
        again = client.predict(handle_file(ROOT / RAIN), WORDS, api_name="/segment")["result"]
        assert again["reply"] == first["reply"] and again["regions"] == first["regions"]
        assert client.predict(uploaded, first, api_name="/download").endswith(".zip")
    finally:
        process.terminate()
        assert "Traceback" not in process.stderr.read()
        process.wait(PATIENCE)


# --- proxies


@pytest.mark.parametrize("names", ["upper", "lower"])
def test_the_page_starts_past_the_proxies_of_the_environment(tmp_path, names):
    """One that refuses all, and one whose library is not there."""
    proxy = Proxy(502)
    environment = {
        "HTTP_PROXY": proxy.url,
        "HTTPS_PROXY": proxy.url,
        "ALL_PROXY": "socks5://127.0.0.1:9",
    }
    if names == "lower":
        environment = {name.lower(): value for name, value in environment.items()}
        environment["no_proxy"] = "example.org,::1"
    process, url = started(tmp_path, **environment)
    try:
        client = Client(url, verbose=False)
        answer = client.predict(handle_file(ROOT / RAIN), WORDS, api_name="/segment")["result"]
        assert answer["outcome"] == "found" and not proxy.came
    finally:
        process.terminate()
        assert "Traceback" not in process.stderr.read()
        process.wait(PATIENCE)
        proxy.shutdown()
        proxy.server_close()


# --- memory

TOO_LITTLE = """
import os, resource, sys
import torch, transformers
from coprs_core import CoPRSError, load
from app.server.model import ModelServer
from coprs_core.checkpoints.options import LoadOptions

torch.set_num_threads(1)
engine = load("mini", device="cpu")
before = engine.segment("assets/examples/rain.png", "something to stay dry with")
said = []
for megabytes in (0, 5, 10, 15, 20, 30):
    child = os.fork()
    if not child:
        server = ModelServer(engine, LoadOptions(device="cpu"))
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 1_000_000, -1))
        status = 1
        try:
            load("mini", device="cpu")
            status = 10
        except CoPRSError as problem:
            print(megabytes, problem, flush=True)
            status = 0
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
            after = server.engine.segment("assets/examples/rain.png", "something to stay dry with")
            os._exit(status if (after.mask == before.mask).all() else 2)
    said.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(said)
assert set(said) <= {0, 10} and 0 in said, said
"""


def test_memory_that_runs_out_while_loading_is_said_whatever_raised_it():
    done = run("-c", TOO_LITTLE)
    assert done.returncode == 0, done.stdout + done.stderr
    sentences = [line for line in done.stdout.splitlines() if line[0].isdigit()]
    assert sentences and all("mini needs more memory than there is" in s for s in sentences)


# --- a model in exchange


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Copies of the miniature, each broken where another file is read."""
    folder = tmp_path_factory.mktemp("broken")
    for name in ("decoder.safetensors", "mllm/model.safetensors", "coprs.json"):
        copy = folder / name.replace("/", "-")
        shutil.copytree(MINIATURE_FOLDER, copy)
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[: len(whole) // 2])
    return sorted(folder.iterdir())


def test_a_broken_model_leaves_the_one_in_use_and_loses_nobody(mini, broken):
    engine = Engine(mini.checkpoint)
    server = ModelServer(engine)
    demo = build(server, may_switch=True)
    _, url, _ = launch(demo, quiet=True)
    try:
        visitor, owner = Client(url, verbose=False), Client(url, verbose=False)
        ask = partial(visitor.predict, handle_file(ROOT / RAIN), WORDS, api_name="/segment")
        before = ask()["result"]
        steps, undo = slowed(engine, 0.05)
        on_its_way = visitor.submit(handle_file(ROOT / RAIN), WORDS, api_name="/segment")
        until(lambda: steps)
        for folder in broken:
            with pytest.raises(Exception, match="broken|cannot be read|cannot be loaded"):
                owner.predict(str(folder), api_name="/use_model")
            assert ask()["result"]["regions"] == before["regions"]
            assert server.engine.name == "mini"
        assert on_its_way.result(PATIENCE)["result"]["regions"] == before["regions"]
        undo()
    finally:
        demo.close()


# --- who asks and goes away


@pytest.mark.parametrize("way", ["closed", "unwanted", "cancelled", "gone"])
def test_whoever_goes_frees_the_worker_within_two_words(mini, cancelling, way):
    """The generator closed, an answer no longer wanted, a client's job cancelled, a client's
    process killed in mid-answer."""
    engine = Engine(mini.checkpoint)
    server = ModelServer(engine, at_once=1)
    demo = build(server)
    _, url, _ = launch(demo, quiet=True)
    asks_here = way in ("closed", "unwanted")
    try:
        with held_steps(engine, 10**9 if asks_here else 5) as (steps, let_go):
            if asks_here:
                is_wanted = [True]
                answer = server.stream(open_photo(ROOT / RAIN), WORDS, lambda: is_wanted[0])
                while len(steps) < 5:
                    next(answer)
                is_wanted[0] = False
                with pytest.raises(Cancelled) if way == "unwanted" else nullcontext():
                    list(answer) if way == "unwanted" else answer.close()
            elif way == "cancelled":
                job = Client(url, verbose=False).submit(
                    handle_file(ROOT / RAIN), WORDS, api_name="/segment"
                )
                until(lambda: len(steps) == 5)
                threading.Thread(target=job.cancel).start()
                assert cancelling.wait(PATIENCE)
            else:
                code = (
                    "from gradio_client import Client, handle_file\n"
                    f"Client({url!r}, verbose=False).predict("
                    f"handle_file({str(ROOT / RAIN)!r}), {WORDS!r}, api_name='/segment')"
                )
                process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
                until(lambda: len(steps) == 5)
                process.kill()
                process.wait()
                until(lambda: nobody_reads(demo))
            let_go()
            until(lambda: server.is_idle)
            assert len(steps) - 5 <= 2, f"{len(steps) - 5} words after"
        again = Client(url, verbose=False).predict(
            handle_file(ROOT / RAIN), WORDS, api_name="/segment"
        )
        assert again["result"]["reply"] == mini.segment(ROOT / RAIN, WORDS).reply
    finally:
        demo.close()


@pytest.mark.parametrize("asked", ["focus_again", "word"])
def test_a_given_reply_is_read_no_further_when_its_reader_has_gone(mini, asked, tmp_path):
    """A changed thought, and a reply that a program sends back: 24 passes or more through a layer;
    the program ends after a few."""
    engine = Engine(mini.checkpoint)
    photo = ROOT / RAIN
    result, language = engine.segment(photo, WORDS), engine.focus.language
    ids = (*result.reply_ids[:-1] * 80, result.reply_ids[-1])[-4000:]
    long = replace(result, reply_ids=ids, reply=language.decode_ids(list(ids)))
    (tmp_path / "long.json").write_text(json.dumps(long.to_dict(with_priors=True)))
    layers = engine.model.mllm.model.language_model.layers
    server = ModelServer(engine, at_once=1)
    demo = build(server)
    _, url, _ = launch(demo, quiet=True)
    given = {
        "focus_again": f"{WORDS!r}, 'It is the red one. ' * 400",
        "word": f"json.loads(open({str(tmp_path / 'long.json')!r}).read()), '3990'",
    }
    code = (
        "import json\nfrom gradio_client import Client, handle_file\n"
        f"Client({url!r}, verbose=False).predict("
        f"handle_file({str(photo)!r}), {given[asked]}, api_name='/{asked}')"
    )
    try:
        # the question has been read by the first layer, and the reply is begun
        with held(layers[0], 2) as (begun, let_go):
            others = [one.register_forward_hook(lambda *_: begun.append(1)) for one in layers[1:]]
            process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
            until(lambda: len(begun) > len(layers))
            left = len(begun)
            process.kill()
            process.wait()
            until(lambda: nobody_reads(demo))
            let_go()
            until(lambda: server.is_idle)
            assert len(begun) - left <= 4, f"{len(begun) - left} passes after"
            for one in others:
                one.remove()
        again = Client(url, verbose=False).predict(
            handle_file(photo), WORDS, "It is the red one.", api_name="/focus_again"
        )
        assert again["thought_given"]
    finally:
        demo.close()
