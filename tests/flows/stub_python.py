"""A stub for the cluster's Python in tests of the queue: jobs that sleep, and record if they run twice at once.

The name of a job's manifest decides what it does: ``SECONDS-ANYTHING`` sleeps, ``flaky-...`` fails the first time,
``bad-...`` and ``hopeless-...`` fail with the exit statuses of wrong input and of a job that cannot continue. A trace
file next to the manifest receives a line for each start and end.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

from service.progress.file import append_error, append_progress
from service.progress.record import Progress


def main() -> int:
    module, arguments = sys.argv[2], sys.argv[3:]
    if not module.startswith("ray_jobs."):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    manifest = Path(arguments[arguments.index("--manifest") + 1])
    trace, kind = manifest.with_suffix(".trace"), manifest.name.split("-")[0]
    with open(manifest.with_suffix(".lock"), "a") as lock, open(trace, "a", buffering=1) as trace_file:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            trace_file.write("TWICE AT ONCE\n")
            return 2
        first = not trace.stat().st_size
        trace_file.write(f"start {os.getpid()}\n")
        append_progress(Progress(done=1, total=2, eta_s=1.0, activity="scoring"))
        if kind == "bad":
            append_error("the manifest is wrong in line 7")
            return 2
        if kind == "hopeless":
            append_error("step 7: loss nan")
            return 4
        time.sleep(float(kind) if kind.replace(".", "").isdigit() else 0.2)
        if kind == "flaky" and first:
            append_error("the store was unavailable")
            return 1
        trace_file.write("end\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
