"""Runs the command of a job on the cluster and reports to the object store: heartbeats, log, progress, end.

    python -m service.supervisor --folder s3://bucket/jobs/ID/attempts/1 -- python -m ray_jobs.train ...

So a job's log and end are known even if the cluster, the service or the connection between them is lost. A job that was
given up ends by itself: the supervisor finds a stop file in its folder. The exit status is that of the command, or
128 + N after signal N.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from service.environment import PROGRESS_FILE
from service.errors import MagnetError
from service.exit_status import INTERRUPTED
from service.queue.attempt_folder import AttemptFolder, Ending, Heartbeat
from service.supervisor.command_log import CommandLog
from service.supervisor.parent_death import with_parent
from service.supervisor.progress import ProgressReader
from service.supervisor.secrets import Mask

GRACE_S = 20.0
"""Seconds between SIGTERM and SIGKILL when the command has to stop."""
LAST_PATIENCE_S = 60.0
"""Seconds in which the last heartbeat is repeated while the store is unavailable."""
READER_WAIT_S = 5.0
"""Seconds to wait for the rest of the output after the command has ended: its own children may hold the pipe open."""


class HeartbeatWriter:
    """Writes the state of a running command into its attempt's folder.

    Args:
        folder: of the attempt.
        log: what the command prints.
        progress: what the command records.
    """

    def __init__(self, folder: AttemptFolder, log: CommandLog, progress: ProgressReader) -> None:
        self._folder, self._log, self._progress = folder, log, progress
        self._count = 0

    def write(self, ending: Ending | None = None) -> bool:
        """Write log, progress and, at the end, how the command ended; return True."""
        self._count += 1
        self._progress.read()
        idle_s = time.monotonic() - max(self._log.changed_s, self._progress.changed_s)
        log_bytes = self._log.write(self._folder)  # before the beat, which names the size of what can be read
        beat = Heartbeat(
            count=self._count,
            log_bytes=log_bytes,
            progress=self._progress.progress,
            ending=ending,
            idle_s=idle_s,
        )
        self._folder.write_beat(beat)
        return True

    def write_last(self, status: int) -> None:
        """Write how the command ended, repeatedly while the store is unavailable.

        Args:
            status: the exit status.
        """
        self._progress.read()
        killed = status > 128 and status != INTERRUPTED
        # An error that the command recorded before it was killed is not the reason of its end.
        recorded = "" if killed else self._progress.error
        ending = Ending(exit_code=status, last=recorded or self._log.reason(killed=killed))
        deadline = time.monotonic() + LAST_PATIENCE_S
        while not _try(partial(self.write, ending)) and time.monotonic() < deadline:
            time.sleep(1)


def main(arguments: Sequence[str]) -> int:
    """Run the supervisor; return its exit status."""
    parser = argparse.ArgumentParser(prog="supervisor", description=__doc__)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--beat-s", type=float, default=2.0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    folder = AttemptFolder(options.folder)
    stop_requested = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop_requested.set())
    # A dispatcher that crashed submits again, and a head that was restarted has forgotten the first submission: the
    # command must not run twice.
    if _try(folder.is_stop_requested) or _try(lambda: folder.beat() is not None):
        print("supervisor: not started: this attempt was stopped before it started, or it has started already")
        return 128 + signal.SIGTERM
    mask = Mask(os.environ)
    with ProgressReader(mask) as progress:
        log = CommandLog(mask)
        process = subprocess.Popen(
            options.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {PROGRESS_FILE: str(progress.path)},
            preexec_fn=with_parent(signal.SIGKILL),  # a supervisor that is killed must not leave its command running
        )
        assert process.stdout is not None
        reader = threading.Thread(target=log.read, args=(process.stdout,), daemon=True)
        reader.start()
        heartbeat = HeartbeatWriter(folder, log, progress)
        _supervise(process, heartbeat, folder, options.beat_s, stop_requested)
        reader.join(timeout=READER_WAIT_S)
        status = process.returncode if process.returncode >= 0 else 128 - process.returncode
        heartbeat.write_last(status)
        return status


def _supervise(
    process: subprocess.Popen[bytes],
    heartbeat: HeartbeatWriter,
    folder: AttemptFolder,
    beat_s: float,
    stop_requested: threading.Event,
) -> None:
    """Write heartbeats until the command has ended, and end it when a stop is requested."""
    kill_s, next_s = float("inf"), 0.0
    while True:
        if time.monotonic() >= next_s:
            _try(heartbeat.write)
            if _try(folder.is_stop_requested):
                stop_requested.set()
            next_s = time.monotonic() + beat_s
        if stop_requested.is_set() and kill_s == float("inf"):
            process.terminate()
            kill_s = time.monotonic() + GRACE_S
        if time.monotonic() >= kill_s:
            process.kill()
        try:
            process.wait(timeout=min(0.2, beat_s))
            return
        except subprocess.TimeoutExpired:
            continue


def _try(action: Callable[[], bool]) -> bool:
    """Return the result of an action on the store; False if it fails: an unavailable store must not stop a job."""
    try:
        return action()
    except MagnetError as error:
        print(f"supervisor: {error}", file=sys.stderr, flush=True)
        return False
