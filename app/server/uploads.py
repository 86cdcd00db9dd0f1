"""The private folder of visitors' files, its bounds, and the check of paths in requests.

`CheckedBlocks` is a Gradio page that checks every path of a request and tells each failure in one
sentence; `exit_on_user_error` does so for a failure that ends the server.
"""

import atexit
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import psutil
from gradio.components.image_editor import AcceptBlobs
from gradio.utils import get_upload_folder

from app.options import ServerOptions
from app.texts import parse_language, translate
from coprs_core.errors import CoPRSError, from_os_error
from coprs_core.photos.photo import decoder_errors_as_user_error, open_pil_image, read_photo_file

NOT_UPLOADED = "This is not an uploaded file: upload it again."
BAD_INPUTS = "These inputs are not what was asked for: see “Use via API” at the foot of the page."
MAX_LAYERS, MAX_LAYER_BYTES, MAX_PAINTINGS = 4, 8_000_000, 16
"""Of paintings that nobody has asked about yet: layers, bytes of each, and how many at once."""
LINKS_PREFIX, MAX_UPLOAD_ENTRIES = "links-", 10_000
"""What the folder of answers under links begins with; files and folders of uploads at most."""
UPLOADS_FULL = "The server has no room for more files: try again later."
UNEXPECTED_ERROR = "Something unexpected went wrong, and the server's log says what: ask again."


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


def exit_process(status: int) -> None:
    """End the process at once, without waiting for a model or an answer on its way; nothing of
    visitors stays."""
    remove_private_folder()
    os._exit(status)


@contextmanager
def exit_on_user_error() -> Generator[None, None, None]:
    """What a user can mend and nobody else could catch ends the process, in one sentence."""
    try:
        yield
    except CoPRSError as problem:
        sentence = str(problem)
    except OSError as problem:
        sentence = str(from_os_error(problem))
    else:
        return
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    exit_process(1)


def remove_partial_uploads() -> None:
    """While no upload is on its way: what uploads that broke off have left, and the folders of
    files that Gradio has deleted."""
    for path in use_private_folder().iterdir():
        if path.is_file():  # Gradio moves what has come whole into folders
            path.unlink(missing_ok=True)
        elif not path.name.startswith(LINKS_PREFIX):
            with suppress(OSError):  # it is not empty
                if time.time() - path.stat().st_mtime > 3600:  # else it may be about to be filled
                    path.rmdir()


_max_bytes = ServerOptions.uploads


def set_max_bytes(most_bytes: int) -> None:
    """How much all uploads, and the files that the page gives out, may take on the disk."""
    global _max_bytes
    _max_bytes = most_bytes


def max_link_bytes() -> int:
    """How much the answers under links may take beside: a quarter of that."""
    return _max_bytes // 4


def has_room() -> bool:
    """Whether the private folder may still grow, links aside, which make room for themselves."""
    sizes = entries = 0
    for place, folders, names in os.walk(use_private_folder()):
        folders[:] = [folder for folder in folders if not folder.startswith(LINKS_PREFIX)]
        entries += len(folders) + len(names)
        if entries > MAX_UPLOAD_ENTRIES:
            return False
        for name in names:
            try:
                sizes += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # it went meanwhile
                continue
    return sizes <= _max_bytes


def checked_path(path: Any) -> str:
    """The path of an uploaded file; raises `CoPRSError`, in one sentence for all reasons, where it
    is anything else."""
    folder = Path(get_upload_folder()).resolve()
    try:
        real = Path(path).resolve()
        if isinstance(path, str) and real.is_relative_to(folder) and real.is_file():
            return path
    except (OSError, ValueError, TypeError, RuntimeError):
        pass
    raise CoPRSError(NOT_UPLOADED)


def check_paths(payload: Any) -> None:
    """Raises `CoPRSError` where a path anywhere in a request is not that of an uploaded file."""
    left = [payload]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if value.get("path") is not None:
                checked_path(value["path"])
            left += value.values()
        elif isinstance(value, list):
            left += value


def limit_paintings(editor: gr.ImageEditor) -> None:
    """Strokes come beside the queue, part by part: from now on few of them, small, and none kept
    for long; anything else is passed over."""
    accept = editor.accept_blobs

    def accept_blobs(data: AcceptBlobs) -> None:
        values: Any = data.data
        index, content = str(values.get("index") or "null"), data.files[0][1]
        is_layer_known = index == "null" or (index.isdecimal() and int(index) < MAX_LAYERS)
        id_ = str(values.get("id"))
        if is_layer_known and len(id_) <= 64 and len(content) <= MAX_LAYER_BYTES:
            accept(data)
        while len(editor.blob_storage) > MAX_PAINTINGS:
            editor.blob_storage.pop(next(iter(editor.blob_storage)))

    vars(accept_blobs)["_is_server_fn"] = True  # Gradio looks for this
    editor.accept_blobs = accept_blobs  # type: ignore[method-assign]


_readers: dict[int, Callable[[Any], Any]] = {}


def set_reader(component: Any, reader: Callable[[Any], Any]) -> None:
    """Let a component's input be read by a function of ours instead of Gradio's own."""
    _readers[component._id] = component.preprocess = reader


_language: ContextVar[str] = ContextVar("_language", default="en")
"""Of the visitor whose request is worked on."""


class CheckedBlocks(gr.Blocks):
    """A page that takes uploaded files alone, and answers whatever else is sent in one sentence."""

    async def process_api(self, *args: Any, **kwargs: Any) -> Any:
        request = kwargs.get("request")
        accepted = request.headers.get("accept-language") if request else None
        _language.set(parse_language(accepted))
        return await super().process_api(*args, **kwargs)

    async def preprocess_data(
        self, block_fn: Any, inputs: list, state: Any, *args: Any, **kwargs: Any
    ) -> list:
        try:
            check_paths(inputs)
            for block in block_fn.inputs:  # a session makes a component anew when it changes
                if block._id in _readers and state is not None and block._id in state:
                    state[block._id].preprocess = _readers[block._id]
            return await super().preprocess_data(block_fn, inputs, state, *args, **kwargs)
        except CoPRSError as problem:
            raise _as_gr_error(problem) from None
        except Exception:  # a stranger's request makes Gradio raise anything at all
            raise _as_gr_error(BAD_INPUTS) from None

    async def call_function(
        self,
        block_fn: Any,
        processed_input: list,
        iterator: Any = None,
        requests: Any = None,
        event_id: str | None = None,
        event_data: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        try:
            check_paths(getattr(event_data, "_data", None))
            if block_fn.fn is None:  # done in the browser alone
                raise CoPRSError(BAD_INPUTS)
            return await super().call_function(
                block_fn, processed_input, iterator, requests, event_id, event_data, *args, **kwargs
            )
        except CoPRSError as problem:
            raise _as_gr_error(problem) from None
        except gr.Error:
            raise
        except OSError as problem:
            raise _disk_full_error(problem) from None
        except Exception:  # a mistake of ours: told to whoever runs the server
            traceback.print_exc()
            raise _as_gr_error(UNEXPECTED_ERROR) from None

    async def postprocess_data(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().postprocess_data(*args, **kwargs)
        except OSError as problem:
            raise _disk_full_error(problem) from None


def _as_gr_error(sentence: CoPRSError | str) -> gr.Error:
    return gr.Error(translate(_language.get(), sentence), print_exception=False)


def _disk_full_error(problem: OSError) -> gr.Error:
    """For the visitor; which file it was is told to whoever runs the server alone."""
    print(f"error: {from_os_error(problem)}", file=sys.stderr, flush=True)
    return _as_gr_error(UPLOADS_FULL)


def painted_mask(layers: list[str], size: tuple[int, int]) -> np.ndarray:
    """The union of what was painted, bool [H, W], from the editor's layers (files, RGBA)."""
    painted = np.zeros(size, bool)
    for layer in layers[:MAX_LAYERS]:
        with (
            decoder_errors_as_user_error(layer),
            open_pil_image(layer, read_photo_file(layer)) as image,
        ):
            if (image.height, image.width) != size:  # before anything is decoded
                raise CoPRSError("The painting is of another size than the photo: paint it again.")
            if image.mode == "RGBA":
                painted |= np.asarray(image)[..., 3] > 0
    if not painted.any():
        raise CoPRSError(
            "Nothing is painted and no file is given: paint the true mask over the photo, "
            "or upload a PNG or .json."
        )
    return painted
