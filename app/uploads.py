"""Where visitors' files are kept while the server runs, and which paths in a request are taken."""

import atexit
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import psutil
from gradio.utils import get_upload_folder

from app.options import Listening
from coprs_core.errors import CoPRSError, of_the_system

REFUSED = "This is not an uploaded file: upload it again."
UNUSABLE = "These inputs are not what was asked for: see “Use via API” at the foot of the page."
NO_ROOM = "The server has no room for more files: try again later."
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
    if use_private_folder.cache_info().currsize:  # else none was made
        shutil.rmtree(use_private_folder(), ignore_errors=True)


def end(status: int) -> None:
    """End the process at once, without waiting for a model or an answer on its way; nothing of
    visitors stays."""
    remove_private_folder()
    os._exit(status)


@contextmanager
def or_end() -> Generator[None, None, None]:
    """What a user can mend and nobody else could catch ends the process, in one sentence."""
    try:
        yield
    except CoPRSError as problem:
        sentence = str(problem)
    except OSError as problem:
        sentence = of_the_system(problem)
    else:
        return
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    end(1)


def remove_unfinished() -> None:
    """While no upload is on its way: what uploads that broke off have left."""
    for path in use_private_folder().iterdir():
        if path.is_file():  # Gradio moves what has come whole into folders
            path.unlink(missing_ok=True)


_most_bytes = Listening.uploads


def bound(most_bytes: int) -> None:
    """How much all uploads, and the files that the page gives out, may take on the disk."""
    global _most_bytes
    _most_bytes = most_bytes


def has_room() -> bool:
    """Whether the private folder may still grow."""
    sizes = 0
    for place, _, names in os.walk(use_private_folder()):
        for name in names:
            try:
                sizes += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # it went meanwhile
                continue
    return sizes <= _most_bytes


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
        except OSError as problem:
            raise _no_room(problem) from None
        except Exception:  # a mistake of ours: told to whoever runs the server
            traceback.print_exc()
            raise gr.Error(UNEXPECTED, print_exception=False) from None

    async def postprocess_data(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().postprocess_data(*args, **kwargs)
        except OSError as problem:
            raise _no_room(problem) from None


def _no_room(problem: OSError) -> gr.Error:
    """For the visitor; which file it was is told to whoever runs the server alone."""
    print(f"error: {of_the_system(problem)}", file=sys.stderr, flush=True)
    return gr.Error(NO_ROOM, print_exception=False)
