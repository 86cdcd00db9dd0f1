"""Where visitors' files are kept while the server runs, and which paths in a request are taken."""

import atexit
import os
import shutil
import tempfile
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import psutil
from gradio.utils import get_upload_folder

from coprs_core.errors import CoPRSError

REFUSED = "This is not an uploaded file: upload it again."
UNUSABLE = "These inputs are not of the kind that was asked for: see “api” at the foot of the page."
UNEXPECTED = "Something unexpected went wrong, and the server's log says what: ask again."


@cache
def use_private_folder() -> Path:
    """A folder that only this user can read, for uploads and for the files that the page gives out.

    It goes when the process ends; folders of processes that were killed go now. `GRADIO_TEMP_DIR`
    says inside which folder it is made.
    """
    parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob("coprs-uploads-*"):
        pid = old.name.split("-")[2]
        # in a container every process of ours is number 1
        is_gone = pid.isdecimal() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid)))
        if is_gone:
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"coprs-uploads-{os.getpid()}-", dir=parent)).resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    atexit.register(remove_private_folder)
    return folder


def remove_private_folder() -> None:
    """At the end of the process: no upload outlives it."""
    shutil.rmtree(use_private_folder(), ignore_errors=True)


def end(status: int) -> None:
    """End the process at once, without waiting for a model or an answer on its way; nothing of
    visitors stays."""
    remove_private_folder()
    os._exit(status)


def size_on_disk(folder: Path) -> int:
    """Bytes of all files below a folder."""
    sizes = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                sizes += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # it went meanwhile
                continue
    return sizes


def checked(path: Any) -> str:
    """The path of an uploaded file; raises `CoPRSError`, in one sentence for all reasons, where it
    is anything else."""
    folder = Path(get_upload_folder()).resolve()
    try:
        real = Path(path).resolve()
        if isinstance(path, str) and real.is_relative_to(folder) and real.is_file():
            return path
    except (OSError, ValueError, TypeError, RuntimeError):
        pass
    raise CoPRSError(REFUSED)


def check_paths(payload: Any) -> None:
    """Raises `CoPRSError` where a path anywhere in a request is not that of an uploaded file."""
    left = [payload]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if value.get("path") is not None:
                checked(value["path"])
            left += value.values()
        elif isinstance(value, list):
            left += value


class Page(gr.Blocks):
    """A page that takes uploaded files alone, and answers whatever else is sent in one sentence."""

    async def preprocess_data(self, block_fn: Any, inputs: list, *args: Any, **kwargs: Any) -> list:
        try:
            check_paths(inputs)
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except CoPRSError as problem:
            raise gr.Error(str(problem), print_exception=False) from None
        except Exception:  # a stranger's request makes Gradio raise anything at all
            raise gr.Error(UNUSABLE, print_exception=False) from None

    async def call_function(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().call_function(*args, **kwargs)
        except gr.Error:
            raise
        except Exception:  # a mistake of ours: told to whoever runs the server
            traceback.print_exc()
            raise gr.Error(UNEXPECTED, print_exception=False) from None
