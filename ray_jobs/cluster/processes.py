"""Child processes of a command, which are stopped together with all processes that they started."""

from __future__ import annotations

import os
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

GRACE_S = 10
"""Seconds between asking a process to stop and killing it."""


@contextmanager
def run_process(
    argv: Sequence[str], *, log: Path | None, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process while the context lasts.

    The process gets a separate session, so that Ctrl-C reaches only the command, which stops its processes in order.

    Args:
        argv: program and arguments.
        log: file for its output; None: the output is discarded.
        env: variables to add to this process's environment.
        cwd: working folder.
    """
    with open(log if log is not None else os.devnull, "wb") as out:
        process = subprocess.Popen(
            list(argv), stdout=out, stderr=out, env=os.environ | dict(env or {}), cwd=cwd, start_new_session=True
        )
        try:
            yield process
        finally:
            kill_tree(process)


def kill_tree(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Terminate a process and all its descendants; kill those that do not end within `GRACE_S` seconds.

    The process itself is terminated first: a Ray cluster then stops its parts in order within 4 s. If all processes
    are terminated at once, some wait forever for others.
    """
    tree = _find_tree(process.pid)
    alive: list[psutil.Process] = []
    for targets in (tree[:1], tree):
        for target in targets:
            _send(target.terminate)
        _, alive = psutil.wait_procs(targets, timeout=GRACE_S)
    for survivor in alive:
        _send(survivor.kill)
    psutil.wait_procs(alive, timeout=GRACE_S)
    process.wait()


def _find_tree(pid: int) -> list[psutil.Process]:
    """Return a process, its descendants, and the other members of its session; the process itself comes first."""
    tree: dict[int, psutil.Process] = {}
    try:
        root = psutil.Process(pid)
        tree = {process.pid: process for process in (root, *root.children(recursive=True))}
    except psutil.NoSuchProcess:  # its orphans may still run
        pass
    # Orphans are no longer children of the process, but they keep its session.
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid:
                tree.setdefault(process.pid, process)
        except (ProcessLookupError, PermissionError):
            continue
    return list(tree.values())


def free_port() -> int:
    """Return an unused TCP port of the loopback interface."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    """Return whether a server answers with status 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _send(signal: Callable[[], None]) -> None:
    """Send a signal to a process that may have ended."""
    try:
        signal()
    except psutil.NoSuchProcess:
        return
