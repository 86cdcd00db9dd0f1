"""The one model in use, and the way to exchange it for another while the app runs."""

import queue
import threading
from collections.abc import Iterator

from coprs_core.catalogue import Row, rows
from coprs_core.checkpoints import give_memory_back
from coprs_core.downloads import SAM_FILES
from coprs_core.engine import Engine, load
from coprs_core.machine import choose_device


class Shelf:
    """Holds the engine in use, and the options with which others are loaded (see `engine.load`)."""

    def __init__(
        self, engine: Engine, device: str = "auto", dtype: str = "auto", quantization: str = "none", sam: str = "vit_h"
    ):
        self.engine = engine
        self._options = (device, dtype, quantization, sam)
        self._lock = threading.Lock()

    def rows(self) -> list[Row]:
        """The table of models for this machine as it is now."""
        device, _, quantization, sam = self._options
        return rows(choose_device(device), quantization, sam if sam in SAM_FILES else "vit_h")

    def exchange(self, name: str) -> Iterator[str]:
        """Load another model in place of the one in use; yields what is going on, one line at a time.

        The old one makes room first. Where the new one cannot be loaded the old one comes back.

        Raises:
            CoPRSError: why the new one cannot be loaded.
        """
        with self._lock:
            old = self.engine.name
            if name == old:
                return
            self.engine = load("mini", device="cpu")  # so that the app stays able to answer
            give_memory_back(None)
            try:
                self.engine = yield from self._loaded(name)
            except BaseException:  # closing the page counts too
                self.engine = load(old, *self._options)
                raise

    def _loaded(self, name: str) -> Iterator[str]:
        lines: queue.Queue = queue.Queue()

        def work() -> None:
            try:
                lines.put(load(name, *self._options, report=lines.put))
            except Exception as problem:  # carried over to the thread that asked
                lines.put(problem)

        yield f"Loading {name}"
        threading.Thread(target=work, daemon=True).start()
        while isinstance(line := lines.get(), str):
            yield line
        if isinstance(line, Exception):
            raise line
        return line
