"""On a Space with a borrowed GPU: the real entry, with a stand-in for `spaces` that holds to its
rules; and how soon it opens."""

import os
import subprocess
import sys

import httpx
import pytest
import yaml
from gradio_client import Client, handle_file

from app.options import ServerOptions
from app.server.space import MAX_SECONDS, PROBE_SECONDS, gpu_seconds, zero_gpu_worker
from coprs_core.answer.engine import Engine
from coprs_core.probes import heads
from tests import ROOT, free_port
from tests.conftest import PATIENCE, until

VISIT = """
import os, sys
sys.path.insert(0, "tests/stand_in")
sys.argv = ["app.py"]
import torch
torch.set_num_threads(1)
import app.handlers as handlers
import importlib.util
spec = importlib.util.spec_from_file_location("entry", "app.py")
entry = importlib.util.module_from_spec(spec)
spec.loader.exec_module(entry)  # models at module scope
import spaces
assert entry.server.is_ready and not spaces.CALLS
import dataclasses
names = handlers.Frame(**{f.name: f.name for f in dataclasses.fields(handlers.Frame)})
page = handlers.Handlers(entry.server, names)
from app.actions import AnswerActions
from types import SimpleNamespace
from coprs_core.prompts import split_sentences
actions = AnswerActions(entry.server, page.gate)
def change(value):
    said = split_sentences(answered.result.reasoning)[0]
    return page.thought_actions.edit_sentence(answered, (), SimpleNamespace(index=0, value=value, said=said))
photo, words = "assets/examples/rain.png", "the thing that keeps the rain off"
*_, last = page.answer(photo, words, None)
answered = last["answer"]
assert answered.result.outcome == "found" and spaces.CALLS[-1][0] != os.getpid()
first = spaces.CALLS[-1][1]
assert entry.server.engine.cached_features(answered.photo), "what was read inside is lost outside"
*_, again = page.answer(photo, "the largest thing", None)
assert again["answer"].result.photo_reused and spaces.CALLS[-1][1] < first, "the photo was read twice"
assert "the focus settles here" in actions.run_probe("sentences", answered)
assert actions.run_probe("heads", answered).count("<img") == 5
assert change("That is the other one.")["answer"].result.is_thought_given
try:
    change("x" * 9000)
except Exception as problem:
    assert "shorten it" in str(problem), problem
else:
    raise AssertionError("no sentence came from the worker")
streaming = page.answer(photo, "the smallest thing", None)
for _ in range(4):
    next(streaming)
streaming.close()  # Stop: the stand-in checks that the worker ends
streaming = page.answer(photo, "the smallest thing", None)
for _ in range(4):
    next(streaming)
os.kill(spaces.CALLS[-1][0], 9)  # the GPU is taken away in mid-answer
try:
    list(streaming)
except Exception as problem:
    assert "was taken away before this was finished: ask again" in str(problem), problem
else:
    raise AssertionError("nothing was said of the lost worker")
calls = len(spaces.CALLS)
*_, last = page.answer(photo, words, None)
assert last["answer"].result.outcome == "found"
print("fine", calls)
"""


def test_hardware_of_ones_own_is_not_borrowed(monkeypatch):
    """The package `spaces` is installed on every Space."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "stand_in"))
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert zero_gpu_worker() is None
    monkeypatch.setenv("SPACES_ZERO_GPU", "false")
    assert zero_gpu_worker() is None


def test_the_entry_keeps_the_rules_of_a_borrowed_gpu():
    environment = os.environ | {
        "COPRS_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "SPACES_ZERO_GPU": "true",
    }
    run = subprocess.run(
        [sys.executable, "-c", VISIT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 0 and run.stdout.startswith("fine"), run.stderr[-3000:]


def test_the_gpu_is_asked_for_as_long_as_the_work_may_take():
    short, long = (gpu_seconds(Engine.stream, None, None, ("x", n)) for n in (160, 2000))
    assert short < long <= MAX_SECONDS
    assert gpu_seconds(Engine.stream, None, object(), ("x", 160)) < short
    assert gpu_seconds(heads.run, None, None, ("result",)) == PROBE_SECONDS


def test_the_front_matter_of_a_space_is_there():
    text = (ROOT / "README.md").read_text()
    facts = yaml.safe_load(text.split("---")[1])
    assert (
        facts["sdk"] == "gradio"
        and facts["app_file"] == "app.py"
        and len(facts["short_description"]) <= 60
    )
    assert {
        "title",
        "emoji",
        "colorFrom",
        "colorTo",
        "sdk_version",
        "python_version",
        "license",
    } <= facts.keys()
    pinned = next(
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line.startswith("gradio")
    )
    assert pinned.startswith(f"gradio>={facts['sdk_version'].rsplit('.', 1)[0]}")


@pytest.fixture
def started():
    """The app as a process of its own, whose model is not loaded before its input ends: (it, its
    address)."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", LATE, str(port)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process, f"http://127.0.0.1:{port}/"
    process.terminate()
    process.communicate()


LATE = """
import runpy, sys
from app.server.model import ModelServer
load = ModelServer._load
def late(*given, **more):
    sys.stdin.read()
    return load(*given, **more)
ModelServer._load = late
sys.argv = ["app.py", "--port", sys.argv[1]]
runpy.run_path("app.py", run_name="__main__")
"""


def test_the_first_request_is_answered_while_the_model_is_still_to_come(started):
    process, url = started

    def answered() -> bool:
        assert process.poll() is None, process.stderr.read()
        try:
            answer = httpx.get(url, timeout=PATIENCE)
        except httpx.TransportError:
            return False
        return answer.status_code == 200 and "CoPRS" in answer.text

    until(answered)
    process.stdin.close()
    process.stdin = None
    client, photo = Client(url, verbose=False), handle_file(ROOT / "assets/examples/rain.png")
    assert client.predict(photo, "the umbrella", api_name="/segment")["stage"] == "done"


def test_a_password_is_asked_for_where_one_is_set(mini):
    from app.server.model import ModelServer
    from app.ui import build, launch
    from coprs_core import CoPRSError

    demo = build(ModelServer(mini))
    with pytest.raises(CoPRSError, match="NAME:PASSWORD"):
        launch(demo, ServerOptions(password="secret"))
    _, url, _ = launch(demo, ServerOptions(password="me:secret"), quiet=True)
    assert httpx.get(f"{url}config").status_code == 401
    with httpx.Client() as client:
        client.post(f"{url}login", data={"username": "me", "password": "secret"})
        assert client.get(f"{url}config").status_code == 200
    demo.close()
