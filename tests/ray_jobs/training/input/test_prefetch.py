"""Threads that read in advance, and how the waits for them are measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ray_jobs.training.input.prefetch import FetchPool, prefetch
from ray_jobs.training.timer import WaitTimer


def test_only_the_time_spent_waiting_counts() -> None:
    timer = WaitTimer()
    with FetchPool(2, timer) as pool:
        slow, quick = pool.submit(time.sleep, 0.2), pool.submit(lambda: 7)
        assert quick.result() == 7
        slow.result()
        waited_s = timer.reset()
        assert 0.1 < waited_s < 5
        time.sleep(0.1)  # this is computing
        slow.result()
        assert timer.reset() < 0.05


def test_an_error_of_a_fetch_is_raised_to_the_caller_of_result() -> None:
    with FetchPool(1, WaitTimer()) as pool, pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result()


def test_only_the_next_item_is_made_while_the_current_one_is_used() -> None:
    made: list[int] = []
    second_made = threading.Event()

    def items() -> Iterator[int]:
        for n in range(4):
            made.append(n)
            if n == 1:
                second_made.set()
            yield n

    coming = prefetch(items(), WaitTimer())
    assert next(coming) == 0
    assert second_made.wait(10)
    assert made == [0, 1]
    assert list(coming) == [1, 2, 3]


def test_an_error_is_raised_in_the_order_of_the_items() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("torn")

    coming = prefetch(items(), WaitTimer())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="torn"):
        next(coming)
