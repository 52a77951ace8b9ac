"""Notice of a preemption: the machine of a worker is about to be taken away, and the training saves before that."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from service.errors import MagnetError

POLL_EVERY_S = 5.0
"""Seconds between two questions to the cluster, which all workers ask together; Ray itself polls as often."""


class PreemptedError(MagnetError):
    """An attempt ended because the machine of a worker is taken away. Nobody must act: the next attempt continues."""


class PreemptionNotice:
    """Notices SIGTERM instead of obeying it while the context lasts, and asks the cluster for announced preemptions.

    Ray Train runs the loop in a thread, where `signal.signal` is refused, and Ray's own handler would end the process
    at once. `faulthandler` can catch the signal there: it writes a traceback into a pipe, whose content is the notice.

    Args:
        announced: whether the cluster has announced that it takes a worker's machine away. The answer is the same on
            every worker, and every worker must ask equally often.
    """

    def __init__(self, announced: Callable[[], bool] = lambda: False) -> None:
        self._announced = announced
        self._polled_s = time.monotonic()

    def __enter__(self) -> Self:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)  # many signals fill the pipe: writing must not block the process then
        # One thread is enough: the content is not read.
        faulthandler.register(signal.SIGTERM, file=self._write_end, all_threads=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        faulthandler.unregister(signal.SIGTERM)
        os.close(self._write_end)
        os.close(self._read_end)

    def signalled(self) -> bool:
        """Return whether this process has received SIGTERM."""
        return bool(select.select([self._read_end], [], [], 0)[0])

    def poll_due(self) -> bool:
        """Return whether it is time to ask the cluster."""
        return time.monotonic() - self._polled_s >= POLL_EVERY_S

    def poll(self) -> bool:
        """Ask the cluster, together with all other workers; return whether it has announced a preemption."""
        self._polled_s = time.monotonic()
        return self._announced()
