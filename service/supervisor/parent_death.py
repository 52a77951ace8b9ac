"""Ends a child process when its parent dies, however the parent dies."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
"""Option of Linux' prctl: the signal that a process receives when the thread that started it ends."""

_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec loading a library can deadlock


def with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return a `preexec_fn` for `Popen`: the child receives a signal when this process dies.

    Call `Popen` from the main thread, since the signal is also sent when the calling thread ends.

    Args:
        number: the signal.
    """

    def request_signal() -> None:
        _LIBC.prctl(PR_SET_PDEATHSIG, int(number))

    return request_signal
