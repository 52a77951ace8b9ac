"""Processes that a command starts for itself, and stops again with all that they started."""

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
def started(
    words: Sequence[str], *, log: Path | None, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process while the context lasts.

    It gets a session of its own: Ctrl-C reaches only the command, which stops its processes in order.

    Args:
        words: program and arguments.
        log: file that takes its output; None drops it.
        env: added to this process's environment.
        cwd: its working folder.
    """
    with open(log if log is not None else os.devnull, "wb") as out:
        process = subprocess.Popen(
            list(words), stdout=out, stderr=out, env=os.environ | dict(env or {}), cwd=cwd, start_new_session=True
        )
        try:
            yield process
        finally:
            kill_tree(process)


def kill_tree(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Stop a process and all that descend from it; the ones that do not stop by themselves are killed.

    The process is asked first, alone: a cluster stops its parts in order within 4 s, but if all of them are asked at
    once, some wait for ever for others.
    """
    tree = _family(process.pid)
    alive: list[psutil.Process] = []
    for asked in (tree[:1], tree):
        for one in asked:
            _send(one.terminate)
        _, alive = psutil.wait_procs(asked, timeout=GRACE_S)
    for one in alive:
        _send(one.kill)
    psutil.wait_procs(alive, timeout=GRACE_S)
    process.wait()


def _family(pid: int) -> list[psutil.Process]:
    """A process, what descends from it, and what is left of the session that it led; the process itself first."""
    found: dict[int, psutil.Process] = {}
    try:
        root = psutil.Process(pid)
        found = {one.pid: one for one in (root, *root.children(recursive=True))}
    except psutil.NoSuchProcess:  # its orphans may still run
        pass
    for one in psutil.process_iter():
        try:
            if os.getsid(one.pid) == pid:
                found.setdefault(one.pid, one)
        except (ProcessLookupError, PermissionError):
            continue
    return list(found.values())


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a server answers, and well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _send(signal: Callable[[], None]) -> None:
    """Send a signal to a process that may be gone."""
    try:
        signal()
    except psutil.NoSuchProcess:
        return
