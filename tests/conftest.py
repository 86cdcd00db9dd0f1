"""Shared by all tests: the real miniature, a tiny random model, and the browser if there is one."""

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the test processes share the cores

import httpx
import pytest

from coprs_core import load  # before torch, whose threads it lets sleep

# isort: split
import torch
from torch import nn

from coprs_core.answer.engine import Engine
from coprs_core.mini.world.questions import draw_examples
from tests.chat_server import ChatServer

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

PATIENCE = 240
"""Seconds after which what is waited for will not come: a safety net alone, no test's measure."""
for _part in ("connect", "read", "write", "pool"):  # of all requests that say nothing else
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, _part, PATIENCE)
_configs = []


def pytest_configure(config):
    _configs.append(config)


LONG = ("test_ui.py", "test_joint.py", "test_visitors.py", "test_guard.py", "test_formats.py")
"""The longest files are begun first: none is left for one process alone at the end."""


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


def pytest_runtest_logreport(report):
    """Each failure is told when it happens; pytest itself names them at the end, of many minutes."""
    terminal = _configs[0].pluginmanager.get_plugin("terminalreporter")
    if report.failed and terminal:  # the test processes of xdist have none
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = (crash.message if crash else str(report.longrepr)).strip().partition("\n")[0]
        terminal.write_line(f"\nFAILED {report.nodeid}: {reason}", red=True)


@pytest.fixture(scope="session")
def mini() -> Engine:
    """The bundled miniature; one for all tests, none of which may change it."""
    return load("mini", device="cpu")


@pytest.fixture
def fresh(mini) -> Engine:
    """The miniature with nothing cached."""
    return Engine(mini.checkpoint)


@pytest.fixture(scope="session")
def answered(mini):
    """(scene, question, result) of the first 100 test examples."""
    return [(s, q, mini.segment(s.image, q.instruction)) for s, q in draw_examples("test", 0, 100)]


@pytest.fixture
def chat():
    """A model on a server of this machine."""
    server = ChatServer()
    yield server
    server.shutdown()
    server.server_close()


def first_answer(engine: Engine, outcome: str):
    """(scene, question, result) of the first test example that truly has, and is answered with, an
    outcome."""
    for scene, question in draw_examples("test", 0, 100):
        if (not question.targets) == (outcome == "nothing found"):
            result = engine.segment(scene.image, question.instruction)
            if result.outcome == outcome and len(result.regions) <= 1:
                return scene, question, result
    raise AssertionError(f"not one of 100 examples came out as {outcome!r}")


@pytest.fixture(scope="session")
def found(mini):
    return first_answer(mini, "found")


@pytest.fixture(scope="session")
def nothing_found(mini):
    return first_answer(mini, "nothing found")


@pytest.fixture(scope="session")
def chromium() -> str:
    path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if path is None:
        pytest.skip(
            "no Chromium on this machine: install Debian's package chromium to run the browser tests"
        )
    return path


def until(happens: Callable[[], object]) -> None:
    """Waits until something is so, however slow the machine is."""
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.01)


@contextmanager
def held(module: nn.Module, number: int):
    """Inside, the passes through a module wait from a number on, until they are let go: the test
    decides what happens in the middle of an answer, not the clock. Gives the list that counts the
    passes, those let go too, and what lets them go."""
    passes, gate = [], threading.Event()

    def hook(*_) -> None:
        passes.append(1)
        if len(passes) >= number:
            assert gate.wait(PATIENCE)

    handle = module.register_forward_hook(hook)
    try:
        yield passes, gate.set
    finally:
        gate.set()
        handle.remove()


def held_steps(engine: Engine, number: int):
    """As `held`, for the decoding steps of an engine."""
    return held(engine.model.mllm.lm_head, number)


@pytest.fixture
def cancelling(monkeypatch):
    """An event: a running page was told that somebody gives up, and has begun to cancel the work."""
    from gradio import routes

    begun, cancel = threading.Event(), routes.cancel_tasks

    async def noted(names) -> None:
        task = asyncio.ensure_future(cancel(names))
        await asyncio.sleep(0)  # it asks for the end, then waits for the step under way
        begun.set()
        await task

    monkeypatch.setattr(routes, "cancel_tasks", noted)
    return begun


def nobody_reads(demo) -> bool:
    """Whether a running page knows that whoever asked through its queue has gone or given up."""
    queue = demo._queue
    return not any(
        event.alive and key in queue.pending_event_ids_session.get(event.session_hash, ())
        for key, event in list(queue.event_ids_to_events.items())
    )


def slowed(engine: Engine, seconds: float):
    """Makes every decoding step of an engine take a while; returns the list that counts them, and
    how to undo it."""
    steps = []

    def hook(*_) -> None:
        steps.append(1)
        time.sleep(seconds)

    return steps, engine.model.mllm.lm_head.register_forward_hook(hook).remove
