"""A semaphore that admits first come, first served, for the steps of a batch and the requests of
a server."""

import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from coprs_core.errors import Cancelled

POLL_SECONDS = 0.5
"""How often a waiting thread checks whether it should go on waiting."""


@dataclass(eq=False)
class _Waiter:
    size: int
    key: str
    admitted: threading.Event = field(default_factory=threading.Event)


class FairSemaphore:
    """Admits threads, first come, first served: a large task is not kept out by the small ones that
    come after it. With one permit it is a lock.

    Args:
        permits: how many may be inside.
        max_size: the largest total size inside; a larger task is inside alone. None: sizes do not
            matter.
    """

    def __init__(self, permits: int = 1, max_size: int | None = None):
        self._permits, self._max_size = permits, max_size
        self._num_inside, self._total_size = 0, 0
        self._lock, self._queue = threading.Lock(), deque[_Waiter]()

    @property
    def total_size(self) -> int:
        """The total size of what is inside."""
        return self._total_size

    @property
    def waiting_keys(self) -> list[str]:
        """The keys of all waiting threads that have one."""
        with self._lock:
            return [waiter.key for waiter in self._queue if waiter.key]

    def has_room_for(self, size: int) -> bool:
        """Whether a task of a size would be admitted at once."""
        with self._lock:
            return not self._queue and self._fits(size)

    @contextmanager
    def acquire(
        self, size: int = 0, key: str = "", is_wanted: Callable[[], bool] | None = None
    ) -> Generator[None, None, None]:
        """Wait for admission; the context holds one permit, and `size` of the total.

        Raises `Cancelled` where `is_wanted()`, checked every half second, is False while it waits.
        """
        waiter = _Waiter(size, key)
        with self._lock:
            self._queue.append(waiter)
            self._admit()
        try:
            while not waiter.admitted.is_set():
                waiter.admitted.wait(POLL_SECONDS if is_wanted else None)
                if is_wanted and not is_wanted():
                    raise Cancelled("Nobody waits any more for this: ask again.")
            yield
        finally:
            with self._lock:
                if waiter.admitted.is_set():
                    self._num_inside, self._total_size = (
                        self._num_inside - 1,
                        self._total_size - size,
                    )
                else:
                    self._queue.remove(waiter)
                self._admit()

    def _admit(self) -> None:
        """Wake each waiter by its own event: to wake all of them for every token costs more than
        the token."""
        while self._queue and self._fits(self._queue[0].size):
            waiter = self._queue.popleft()
            self._num_inside, self._total_size = (
                self._num_inside + 1,
                self._total_size + waiter.size,
            )
            waiter.admitted.set()

    def _fits(self, size: int) -> bool:
        is_small_enough = (
            self._max_size is None
            or not self._total_size
            or self._total_size + size <= self._max_size
        )
        return self._num_inside < self._permits and is_small_enough
