"""Explains the end of a command by a signal."""

from __future__ import annotations

import signal

CAUSES = {
    "SIGKILL": "as when memory runs out",
    "SIGSEGV": "a crash in native code",
    "SIGBUS": "a crash in native code, or a full /dev/shm",
    "SIGABRT": "a failed check in native code",
    "SIGFPE": "a crash in native code",
    "SIGILL": "native code for another processor",
    "SIGTERM": "as when its node or cluster is shut down",
    "SIGHUP": "as when its terminal or parent ends",
    "SIGPIPE": "the reader of its output ended",
    "SIGXCPU": "a limit of the node",
    "SIGXFSZ": "a limit of the node",
}
"""The usual cause of an end by each signal."""


def signal_reason(exit_code: int, last: str) -> str | None:
    """Return why a command ended, in one line; None if no signal ended it.

    Args:
        exit_code: of the command; 128 + N after signal N.
        last: the last line that the command printed, or the error that it recorded; may be empty.
    """
    try:
        name = signal.Signals(exit_code - 128).name
    except ValueError:
        return None
    cause = f", {CAUSES[name]}" if name in CAUSES else ""
    return f"killed by {name}{cause}; last output: {last}" if last else f"killed by {name}{cause}; it printed nothing"
