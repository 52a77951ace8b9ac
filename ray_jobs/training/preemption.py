"""The notice that a machine is about to be taken away, so that a training saves before it is."""

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

ASK_EVERY_S = 5.0
"""Seconds between two questions to the cluster, which all workers ask together; Ray looks as often itself."""


class PreemptedError(MagnetError):
    """An attempt ended because the machine of a worker is taken away. Nobody must act, the next attempt goes on."""


class Notice:
    """SIGTERM, noticed instead of obeyed while the context lasts, and what the cluster announces.

    `faulthandler` catches the signal, because Ray Train runs the loop in a thread, where `signal.signal` is refused,
    and Ray's own handler would end the process at once. What it writes, where the process was, serves as the notice.

    Args:
        announced: whether the cluster is about to take a worker's machine away, the same on every worker; every worker
            must ask equally often.
    """

    def __init__(self, announced: Callable[[], bool] = lambda: False) -> None:
        self._announced = announced
        self._asked_s = time.monotonic()

    def __enter__(self) -> Self:
        self._written, self._write = os.pipe()
        os.set_blocking(self._write, False)  # whoever sends the signal a thousand times shall not stop the process
        faulthandler.register(signal.SIGTERM, file=self._write, all_threads=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        faulthandler.unregister(signal.SIGTERM)
        os.close(self._write)
        os.close(self._written)

    def given(self) -> bool:
        """Whether this process has got SIGTERM."""
        return bool(select.select([self._written], [], [], 0)[0])

    def due(self) -> bool:
        """Whether it is time to ask the cluster."""
        return time.monotonic() - self._asked_s >= ASK_EVERY_S

    def announced(self) -> bool:
        """WindowRequest the cluster, together with all other workers."""
        self._asked_s = time.monotonic()
        return self._announced()
