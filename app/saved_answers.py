"""Saved answers: the recorded one of the first screen, and those kept under a link."""

import secrets
import shutil
import tempfile
import threading
from functools import cache
from pathlib import Path

from app.server.answers import MAX_PIXELS, StoredAnswer
from app.server.uploads import LINKS_PREFIX, UPLOADS_FULL, max_link_bytes, use_private_folder
from app.visitors import downscale_trace
from coprs_core.errors import CoPRSError
from coprs_core.export.archive import open_answer

RECORDED_ZIP = Path(__file__).resolve().parent.parent / "assets" / "examples" / "recorded.zip"
MAX_LINKS = 200
"""So many answers are kept under links; the oldest are deleted."""
_links_lock = threading.Lock()
_EXPIRED = "This link's answer is no longer kept on this server: ask for it again."


@cache
def load_recorded_answer() -> StoredAnswer:
    """A real answer of the miniature, recorded with its trace."""
    saved = open_answer_file(RECORDED_ZIP)
    return StoredAnswer(saved.photo, saved.result, trace=saved.trace, is_recorded=True)


def open_answer_file(path: Path | str) -> StoredAnswer:
    """A saved answer with its trace, where one was saved; raises as `open_answer` does. Whoever
    opens a stranger's takes the room for `count_pixels` first."""
    saved = open_answer(path, MAX_PIXELS)
    trace = downscale_trace(saved.sentences) if saved.sentences else None
    return StoredAnswer(saved.photo, saved.result, trace=trace)


def save_under_link(file: Path) -> str:
    """Keep an answer's zip; returns the name by which `find_linked_file` finds it, which nobody can
    guess: 128 random bits.

    It is kept while the server runs, until newer ones push it out: `MAX_LINKS`, or
    `max_link_bytes`. Raises `CoPRSError` where it is larger than that by itself.
    """
    token, folder = secrets.token_urlsafe(16), _links_folder()
    with _links_lock:
        left = max_link_bytes() - file.stat().st_size
        if left < 0:
            raise CoPRSError(UPLOADS_FULL)
        kept = sorted(folder.glob("*.zip"), key=lambda p: p.stat().st_mtime)
        left -= sum(p.stat().st_size for p in kept)
        while kept and (len(kept) >= MAX_LINKS or left < 0):
            oldest = kept.pop(0)
            left += oldest.stat().st_size
            oldest.unlink(missing_ok=True)
        shutil.copyfile(file, folder / f"{token}.zip")
    return token


def find_linked_file(token: str) -> Path:
    """The saved answer under a link; raises `CoPRSError` where there is none, or no longer."""
    is_one = len(token) == 22 and all(c.isalnum() or c in "-_" for c in token)
    path = _links_folder() / f"{token}.zip" if is_one else None
    if path is None or not path.is_file():
        raise CoPRSError(_EXPIRED)
    return path


@cache
def _links_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix=LINKS_PREFIX, dir=use_private_folder()))
