"""Who waits for whom, and how long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ray_jobs.training.prefetch import FetchPool, WaitClock, ahead


def test_only_waiting_counts() -> None:
    clock = WaitClock()
    with FetchPool(2, clock) as pool:
        slow, quick = pool.submit(time.sleep, 0.2), pool.submit(lambda: 7)
        assert quick.result() == 7
        slow.result()
        waited_s = clock.take()
        assert 0.1 < waited_s < 5
        time.sleep(0.1)  # this is computing
        slow.result()
        assert clock.take() < 0.05


def test_errors_come_to_whoever_asks() -> None:
    with FetchPool(1, WaitClock()) as pool, pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result()


def test_the_next_item_is_made_while_one_is_used_and_no_more_than_that() -> None:
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for n in range(4):
            made.append(n)
            if n == 1:
                second.set()
            yield n

    coming = ahead(items(), WaitClock())
    assert next(coming) == 0
    assert second.wait(10)
    assert made == [0, 1]
    assert list(coming) == [1, 2, 3]


def test_errors_come_in_their_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("torn")

    coming = ahead(items(), WaitClock())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="torn"):
        next(coming)
