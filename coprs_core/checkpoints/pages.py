"""Memory while a model is quantized: the files' pages are let go as they are done with.

Weights are read from files that are mapped into memory, and their pages count as the process's own
until the system wants them back. Quantized, a model needs few of them again.
"""

import ctypes
import re
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from coprs_core.machine import trim_memory

EVERY_SECONDS = 0.5
_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s*(.*)")
_DONTNEED = 4


@contextmanager
def letting_pages_go(folder: Path) -> Generator[None, None, None]:
    """Inside, and once at the end, pages of the folder's files that nobody has written to are let
    go, and so is freed memory (Linux; elsewhere nothing happens).

    What is needed again is read again, from the system's cache.
    """
    if not _SMAPS.is_file():
        yield
        return
    over = threading.Event()

    def keep_letting_go() -> None:
        while not over.wait(EVERY_SECONDS):
            let_pages_go(folder)

    thread = threading.Thread(target=keep_letting_go, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        let_pages_go(folder)
        trim_memory()


def let_pages_go(folder: Path) -> None:
    """Let go of the unwritten pages of a folder's mapped files, now."""
    libc = ctypes.CDLL(None)
    for start, end in list(_unwritten(str(folder.resolve()))):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def _unwritten(folder: str) -> Iterator[tuple[int, int]]:
    """Where files of a folder are mapped, where this process has written nothing into its copy."""
    place, written = None, 0
    for line in _SMAPS.read_text().splitlines():
        if mapping := _MAPPING.fullmatch(line):
            if place and not written:
                yield place
            start, end, path = mapping.groups()
            is_ours = path.startswith(folder) and path.endswith(".safetensors")
            place, written = (int(start, 16), int(end, 16)) if is_ours else None, 0
        elif line.startswith(("Private_Dirty", "Shared_Dirty", "Anonymous")):
            written += int(line.split()[1])
    if place and not written:
        yield place
