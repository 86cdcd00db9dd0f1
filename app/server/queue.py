"""Who works when: the model's work on photos, in the order in which it came."""

import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager

from coprs_core.errors import Cancelled
from coprs_core.machine import trim_memory
from coprs_core.photos.photo import Photo

PIXELS_AT_ONCE = 12_000_000
"""Photos are worked on together up to so many pixels; a larger one is worked on alone."""
_ASK_SECONDS = 0.5
"""So often it is asked whether who waits is still wanted."""


class Room:
    """Lets pieces of work in as they came: so many `at_once`, and so many pixels together.

    `waiting` are the keys of the photos that wait.
    """

    def __init__(self, at_once: int):
        self._at_once, self._inside, self._pixels = at_once, 0, 0
        self._changed, self._line = threading.Condition(), deque[object]()
        self.waiting: list[str] = []

    @property
    def is_empty(self) -> bool:
        """Whether no photo is worked on."""
        return not self._pixels

    def is_free_for(self, photo: Photo) -> bool:
        """Whether work on a photo would begin at once."""
        return not self._line and self._fits(photo.size[0] * photo.size[1])

    @contextmanager
    def taken(
        self,
        photo: Photo | None = None,
        is_wanted: Callable[[], bool] | None = None,
        pixels: int = 0,
    ) -> Generator[None, None, None]:
        """Inside there is room for work, on a photo, on other `pixels` or on none; waits for it.

        Raises `Cancelled` where the work is no longer wanted while it waits.
        """
        if photo:
            pixels = photo.size[0] * photo.size[1]
        keys = [photo.key] if photo else []
        with self._changed:
            self._wait(pixels, keys, is_wanted)
            self._inside, self._pixels = self._inside + 1, self._pixels + pixels
        try:
            yield
        finally:
            if pixels > PIXELS_AT_ONCE:
                trim_memory()  # before the next large one comes in
            with self._changed:
                self._inside, self._pixels = self._inside - 1, self._pixels - pixels
                self._changed.notify_all()

    def _wait(self, pixels: int, keys: list[str], is_wanted: Callable[[], bool] | None) -> None:
        own = object()
        self._line.append(own)
        self.waiting += keys
        try:
            while self._line[0] is not own or not self._fits(pixels):
                self._changed.wait(_ASK_SECONDS)
                if is_wanted and not is_wanted():
                    raise Cancelled("Nobody waits any more for this: ask again.")
        finally:
            self._line.remove(own)
            for key in keys:
                self.waiting.remove(key)
            self._changed.notify_all()  # who is next may come in, too

    def _fits(self, pixels: int) -> bool:
        is_small_enough = not self._pixels or self._pixels + pixels <= PIXELS_AT_ONCE
        return self._inside < self._at_once and is_small_enough
