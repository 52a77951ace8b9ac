"""Clocks of the training loop: how long a step takes, and how much of that it waits for pixels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class WaitTimer:
    """Adds up the seconds in which the training thread does nothing but wait for pixels."""

    def __init__(self) -> None:
        self._waited_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure while the context lasts: the thread waits."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self._waited_s += time.perf_counter() - began_s

    def reset(self) -> float:
        """Return the seconds since the last reset, and start from zero."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s


class StepTimer:
    """Measures the steps of a training."""

    def __init__(self) -> None:
        self.wait = WaitTimer()
        """Timer of the waits for pixels."""
        self._lap_s = time.perf_counter()

    def start(self) -> None:
        """Start measuring: what passed before is no part of a step."""
        self._lap_s = time.perf_counter()
        self.wait.reset()

    def lap(self) -> dict[str, float]:
        """Return the seconds since the last lap: `step_s`, and of those `wait_s` without pixels."""
        now_s = time.perf_counter()
        lap = {"step_s": now_s - self._lap_s, "wait_s": self.wait.reset()}
        self._lap_s = now_s
        return lap
