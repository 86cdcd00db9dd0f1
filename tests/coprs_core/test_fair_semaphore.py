"""The one kind of waiting in line: in order, within permits and size, given up where unwanted."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from coprs_core import fair_semaphore
from coprs_core.errors import Cancelled
from coprs_core.fair_semaphore import FairSemaphore


def wait_until(is_so):
    while not is_so():
        time.sleep(0.001)


def test_with_one_permit_it_is_a_lock_that_lets_in_as_they_came():
    lock, order = FairSemaphore(), []

    def visit(key):
        with lock.acquire(key=key):
            order.append(key)

    with ThreadPoolExecutor() as pool, lock.acquire():
        for key in "abcde":
            pool.submit(visit, key)
            wait_until(lambda key=key: key in lock.waiting_keys)
        assert order == [] and not lock.has_room_for(0)
    assert order == list("abcde") and lock.waiting_keys == [] and lock.has_room_for(0)


def test_a_large_one_is_not_kept_out_by_the_small_ones_after_it_and_is_inside_alone():
    line, order = FairSemaphore(permits=2, max_size=10), []

    def work(key, size):
        with line.acquire(size, key):
            order.append((key, line.total_size))

    with ThreadPoolExecutor() as pool, line.acquire(1):
        assert line.has_room_for(9) and not line.has_room_for(10)
        for key, size in (("large", 12), ("small", 1)):
            pool.submit(work, key, size)
            wait_until(lambda key=key: key in line.waiting_keys)
        assert not line.has_room_for(1)  # though it would fit beside the one inside
    assert order == [("large", 12), ("small", 1)] and line.total_size == 0 and line.has_room_for(99)


def test_as_many_are_inside_as_there_are_permits():
    line, both = FairSemaphore(permits=2), threading.Barrier(2, timeout=60)

    def meet():
        with line.acquire():
            both.wait()

    with ThreadPoolExecutor() as pool:
        assert [task.result() for task in [pool.submit(meet) for _ in range(4)]] == [None] * 4


def test_who_is_no_longer_wanted_leaves_the_line_and_those_behind_move_up(monkeypatch):
    monkeypatch.setattr(fair_semaphore, "POLL_SECONDS", 0.01)
    line, wanted = FairSemaphore(permits=2, max_size=10), [True]

    def work(key, size, is_wanted=None):
        with line.acquire(size, key, is_wanted):
            return key

    with ThreadPoolExecutor() as pool, line.acquire(8):
        large = pool.submit(work, "large", 5, lambda: wanted[0])
        wait_until(lambda: line.waiting_keys == ["large"])
        small = pool.submit(work, "small", 1)
        wait_until(lambda: line.waiting_keys == ["large", "small"])
        wanted[0] = False
        with pytest.raises(Cancelled):
            large.result(timeout=60)
        assert small.result(timeout=60) == "small" and line.total_size == 8
    assert line.waiting_keys == [] and line.total_size == 0


def test_a_failure_inside_gives_its_place_back():
    line = FairSemaphore()
    with pytest.raises(KeyError), line.acquire(5):
        raise KeyError
    assert line.total_size == 0 and line.has_room_for(5)
