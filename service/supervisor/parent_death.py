"""Processes that do not outlive the one that started them, however it ends."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that a process gets when the thread that started it ends."""

_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec nothing may be


def with_parent(number: signal.Signals) -> Callable[[], None]:
    """For ``Popen(preexec_fn=...)``, called from the main thread: the child gets this signal when we die."""

    def ask() -> None:
        _LIBC.prctl(PR_SET_PDEATHSIG, int(number))

    return ask
