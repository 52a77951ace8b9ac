"""Stands beside a job on the cluster and tells the object store about it: signs of life, log, end.

    python -m service.supervisor.supervisor --folder s3://bucket/jobs/ID/attempts/1 -- python -m ray_jobs.train ...

So a job's log and end are known though the cluster, the service or the connection to it may be gone, and a job that
was given up ends by itself: its folder says stop. The exit status is the command's; 128 + N after signal N.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO

from service.errors import MagnetError
from service.exit_status import INTERRUPTED
from service.queue.attempt_folder import PART_BYTES, AttemptFolder, Beat, Ending
from service.queue.job import Progress
from service.supervisor.job_lines import CHATTER, COLOUR
from service.supervisor.parent_death import with_parent
from service.supervisor.progress import progress_in
from service.supervisor.reason import Reason
from service.supervisor.secrets import Mask

GRACE_S = 20.0
"""Seconds that a command has to end when it is told to."""
LAST_PATIENCE_S = 60.0
"""Seconds in which the end is told again and again to a store that is away."""
MOST_PARTS = 400
"""Of a log: 100 MiB; what comes after is not kept."""
LONGEST_LINE = 64 << 10
"""Bytes; a longer line is taken in pieces."""


class Log:
    """What a command says, kept in parts, with its secrets masked; colours and Ray's chatter are left out.

    Args:
        mask: of the secrets.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._lock = threading.Lock()
        self._parts: list[bytearray] = [bytearray()]
        self._written = 0
        self._reason = Reason()
        self._changed_s = time.monotonic()
        self.progress = Progress()

    def read(self, stream: BinaryIO) -> None:
        """Take all that a stream has, to its end. Bars that redraw their line tell progress and are not kept."""
        rest = b""
        while data := os.read(stream.fileno(), 1 << 16):
            *whole, rest = re.split(rb"(?<=[\r\n])", rest + data)
            for piece in whole:
                self._take(piece)
            if len(rest) > LONGEST_LINE:
                rest = self._take_part(rest)
        if rest:
            self._take(rest + b"\n")

    def _take_part(self, line: bytes) -> bytes:
        """Take the beginning of a long line, cut between words where no secret can be cut; what is left of it."""
        cut = self._mask.cut(line, LONGEST_LINE)
        self._take(line[:cut] + b"\n")
        return line[cut:]

    def _take(self, piece: bytes) -> None:
        line = self._mask(COLOUR.sub("", piece.decode(errors="replace")).rstrip("\r\n"))
        with self._lock:
            progress = self.progress.then(progress_in(line))
            kept = not piece.endswith(b"\r") and not CHATTER.search(line)
            if kept or progress.counted() != self.progress.counted():
                self._changed_s = time.monotonic()
            self.progress = progress
            if not kept:
                return
            self._reason.take(line)
            self._append(f"{line}\n".encode())
        sys.stdout.write(f"{line}\n")  # Ray's dashboard shows it too
        sys.stdout.flush()

    def _append(self, data: bytes) -> None:
        while data and len(self._parts) <= MOST_PARTS:
            room = PART_BYTES - len(self._parts[-1])
            self._parts[-1] += data[:room]
            data = data[room:]
            if data or room == 0:
                self._parts.append(bytearray())

    def write(self, folder: AttemptFolder) -> int:
        """Write what is new; bytes of the whole log."""
        with self._lock:
            first = max(self._written - 1, 0)
            changed = {k: bytes(self._parts[k]) for k in range(first, len(self._parts))}
            size = (len(self._parts) - 1) * PART_BYTES + len(self._parts[-1])
        for number, data in changed.items():
            folder.write_log(number, data)
        with self._lock:
            self._written = first + len(changed)
            for k in range(first, self._written - 1):
                self._parts[k] = bytearray()  # full, written, and not looked at again
        return size

    def idle_s(self) -> float:
        """Seconds since log or progress last changed."""
        with self._lock:
            return time.monotonic() - self._changed_s

    def said_last(self, *, killed: bool = False) -> str:
        """The error that the command named, or its last own line.

        Args:
            killed: whether a signal ended it: errors that it named before are not the reason.
        """
        with self._lock:
            return self._reason.text(killed=killed)


def main(arguments: Sequence[str]) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="witness", description=__doc__)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--beat-s", type=float, default=2.0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    folder = AttemptFolder(options.folder)
    told_to_stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.set())
    if _tolerant(folder.stopped) or _tolerant(lambda: folder.beat() is not None):
        print("told to stop before it began, or begun before elsewhere", flush=True)
        return 128 + signal.SIGTERM
    log = Log(Mask(os.environ))
    process = subprocess.Popen(  # a witness that is killed takes its command along
        options.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=with_parent(signal.SIGKILL)
    )
    assert process.stdout is not None
    reader = threading.Thread(target=log.read, args=(process.stdout,), daemon=True)
    reader.start()
    count = _watch(process, log, folder, options.beat_s, told_to_stop)
    reader.join(timeout=5)  # grandchildren may hold the pipe
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    _tell_end(log, folder, count, status)
    return status


def _watch(
    process: subprocess.Popen[bytes], log: Log, folder: AttemptFolder, beat_s: float, told_to_stop: threading.Event
) -> int:
    """Beat until the command has ended; how many beats."""
    count, kill_s, next_s = 0, float("inf"), 0.0
    while True:
        if time.monotonic() >= next_s:
            count += 1
            _tolerant(partial(_beat, log, folder, count))
            if _tolerant(folder.stopped):
                told_to_stop.set()
            next_s = time.monotonic() + beat_s
        if told_to_stop.is_set() and kill_s == float("inf"):
            process.terminate()
            kill_s = time.monotonic() + GRACE_S
        if time.monotonic() >= kill_s:
            process.kill()
        try:
            process.wait(timeout=min(0.2, beat_s))
            return count
        except subprocess.TimeoutExpired:
            continue


def _beat(log: Log, folder: AttemptFolder, count: int, ending: Ending | None = None) -> bool:
    size = log.write(folder)
    folder.write_beat(Beat(count=count, log_bytes=size, progress=log.progress, ending=ending, idle_s=log.idle_s()))
    return True


def _tell_end(log: Log, folder: AttemptFolder, count: int, status: int) -> None:
    ending = Ending(exit_code=status, last=log.said_last(killed=status > 128 and status != INTERRUPTED))
    deadline = time.monotonic() + LAST_PATIENCE_S
    while not _tolerant(lambda: _beat(log, folder, count + 1, ending)) and time.monotonic() < deadline:
        time.sleep(1)


def _tolerant(action: Callable[[], bool]) -> bool:
    """Do something with the store; a store that is away stops no job."""
    try:
        return action()
    except MagnetError as error:
        print(f"witness: {error}", file=sys.stderr, flush=True)
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
