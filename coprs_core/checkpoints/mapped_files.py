"""Memory while a model is quantized: the files' pages are released as they are done with.

Weights are read from files that are mapped into memory, and their pages count as the process's own
until the system wants them back. Quantized, a model needs few of them again. Measured with 3.3 GB
of random weights in bfloat16: the peak was 3.3 GB in place of 4.2 in nf4, 2.7 in place of 4.4 in
int8.
"""

import ctypes
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

INTERVAL_SECONDS = 0.5
_MAPS = Path("/proc/self/maps")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s*(.*)")
_MADV_PAGEOUT = 21
"""MADV_PAGEOUT of madvise: advice alone, no data is lost whatever is mapped there by then."""


@contextmanager
def release_pages_periodically(files: list[Path]) -> Generator[None, None, None]:
    """Inside, release the mapped pages of these files twice a second (Linux; elsewhere nothing
    happens). What is needed again is read again from the file."""
    if not _MAPS.is_file():
        yield
        return
    stop = threading.Event()

    def release_until_stopped() -> None:
        while not stop.wait(INTERVAL_SECONDS):
            release_pages(files)

    thread = threading.Thread(target=release_until_stopped, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        release_pages(files)


def release_pages(files: list[Path]) -> None:
    """Release the mapped pages of these files now; links are followed, as the cache of Hugging Face
    has them."""
    libc, paths = ctypes.CDLL(None), {str(path.resolve()) for path in files}
    for line in _MAPS.read_text().splitlines():
        mapping = _MAPPING.fullmatch(line)
        if mapping and mapping[3] in paths:
            start, end = int(mapping[1], 16), int(mapping[2], 16)
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)
