"""Reads that overlap with computation: threads that fetch, and the next step's micro-batches opened in advance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from ray_jobs.training.timer import WaitTimer

Result = TypeVar("Result")
Item = TypeVar("Item")
Args = ParamSpec("Args")


class FetchPool(ThreadPoolExecutor):
    """Threads that fetch windows; the time that the training thread waits for their results is measured.

    Args:
        num_threads: number of fetches at once.
        timer: timer of the one thread that waits for results.
    """

    def __init__(self, num_threads: int, timer: WaitTimer) -> None:
        super().__init__(num_threads, thread_name_prefix="fetch")
        self._timer = timer

    def submit(self, fn: Callable[Args, Result], /, *args: Args.args, **kwargs: Args.kwargs) -> Future[Result]:
        """Run a call in a thread; see `concurrent.futures.Executor.submit`."""
        # `drive_many` waits in `Future.result`: measured there, it needs to know nothing of timers.
        timed: _TimedFuture[Result] = _TimedFuture(self._timer)
        super().submit(fn, *args, **kwargs).add_done_callback(partial(_hand_over, timed))
        return timed


class _TimedFuture(Future[Result]):
    """A future that measures how long its result is waited for."""

    def __init__(self, timer: WaitTimer) -> None:
        super().__init__()
        self._timer = timer

    def result(self, timeout: float | None = None) -> Result:
        with self._timer.waiting():
            return super().result(timeout)


def _hand_over(timed: Future[Any], done: Future[Any]) -> None:
    """Give a timed future the outcome of the one that the pool made."""
    if done.cancelled():
        timed.cancel()
    elif (error := done.exception()) is not None:
        timed.set_exception(error)
    else:
        timed.set_result(done.result())


def prefetch(items: Iterator[Item], timer: WaitTimer) -> Iterator[Item]:
    """Yield items in their order; a thread makes the next one while the current one is used.

    Args:
        items: iterator whose items are made one at a time.
        timer: measures how long the next item is waited for.
    """
    # One item and no more: each holds the pixels of a whole step.
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        coming = thread.submit(_next_of, items)
        while True:
            with timer.waiting():
                item = coming.result()
            if not item:
                return
            coming = thread.submit(_next_of, items)
            yield item[0]


def _next_of(items: Iterator[Item]) -> list[Item]:
    """Return the next item in a list, empty at the end: StopIteration cannot cross a future."""
    for item in items:
        return [item]
    return []
