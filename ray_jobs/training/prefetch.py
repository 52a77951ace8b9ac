"""How long a training waits for pixels, and what keeps that short: threads that fetch, and the next step read ahead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, ParamSpec, TypeVar

Result = TypeVar("Result")
Item = TypeVar("Item")
Args = ParamSpec("Args")


class WaitClock:
    """Adds up the seconds that the training thread does nothing but wait for pixels."""

    def __init__(self) -> None:
        self._waited_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context in which the thread waits."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self._waited_s += time.perf_counter() - began_s

    def take(self) -> float:
        """Seconds since this was asked last."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s


class FetchPool(ThreadPoolExecutor):
    """Threads that fetch. Whoever waits for one of their results is timed.

    Args:
        num_threads: that fetch at once.
        clock: of the one thread that asks for results.
    """

    def __init__(self, num_threads: int, clock: WaitClock) -> None:
        super().__init__(num_threads, thread_name_prefix="fetch")
        self._clock = clock

    def submit(self, fn: Callable[Args, Result], /, *args: Args.args, **kwargs: Args.kwargs) -> Future[Result]:
        """See `concurrent.futures.Executor.submit`."""
        timed: _TimedFuture[Result] = _TimedFuture(self._clock)
        super().submit(fn, *args, **kwargs).add_done_callback(partial(_hand_over, timed))
        return timed


class _TimedFuture(Future[Result]):
    def __init__(self, clock: WaitClock) -> None:
        super().__init__()
        self._clock = clock

    def result(self, timeout: float | None = None) -> Result:
        with self._clock.running():
            return super().result(timeout)


def _hand_over(timed: Future[Any], done: Future[Any]) -> None:
    if done.cancelled():
        timed.cancel()
    elif (error := done.exception()) is not None:
        timed.set_exception(error)
    else:
        timed.set_result(done.result())


def ahead(items: Iterator[Item], clock: WaitClock) -> Iterator[Item]:
    """Items in their order, each made in a thread of its own while the one before is being used.

    Args:
        items: made one at a time.
        clock: runs while the next item is not there yet.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(_next_of, items)
        while True:
            with clock.running():
                found = coming.result()
            if not found:
                return
            coming = thread.submit(_next_of, items)
            yield found[0]


def _next_of(items: Iterator[Item]) -> list[Item]:
    """The next item, or nothing at the end: StopIteration cannot cross a future."""
    for item in items:
        return [item]
    return []
