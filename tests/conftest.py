"""Shared by all tests: the real miniature, a tiny random model, and the browser if there is one."""

import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest
import torch

from coprs_core import load
from coprs_core.engine import Engine
from coprs_core.questions import examples

torch.set_num_threads(min(2, os.cpu_count() or 1))


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
    return [(s, q, mini.segment(s.image, q.instruction)) for s, q in examples("test", 0, 100)]


@pytest.fixture(scope="session")
def found(answered):
    """The first (scene, question, result) with a mask."""
    return next(a for a in answered if a[2].outcome == "found")


@pytest.fixture(scope="session")
def chromium() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine: install Debian's package chromium to run the browser tests")
    return path
