"""The file to which a job of the service appends its progress, and the error that ends it: one JSON object per line.

The job's supervisor makes the file and names it in MAGNET_PROGRESS_FILE (`service.supervisor.progress` reads it). A
command that a user starts by hand has no such file, and writes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict

from service import environment
from service.progress.record import Progress

LONGEST_RECORD_BYTES = 16 << 10
"""Bound of a line; the reader ignores longer ones."""
MAX_ACTIVITY_CHARS = 300
"""Bound of the activity: it is one cell of a table."""
MAX_ERROR_CHARS = 2000
"""Bound of the error, so that its line stays below `LONGEST_RECORD_BYTES` even if each character needs 6 bytes."""


def append_progress(progress: Progress, file: str | None = None) -> None:
    """Append a record of the job's progress.

    Args:
        progress: how far the job is.
        file: path of the file; None: the one that the environment names, if any.
    """
    record = {name: value for name, value in asdict(progress).items() if value is not None}
    if progress.activity is not None:
        record["activity"] = progress.activity[:MAX_ACTIVITY_CHARS]
    _append(record, file or environment.progress_file())


def append_error(message: str) -> None:
    """Append the error that ends the job: the reason that users of the service see.

    Args:
        message: the error; only its beginning is written.
    """
    _append({"error": message[:MAX_ERROR_CHARS]}, environment.progress_file())


def _append(record: Mapping[str, object], file: str | None) -> None:
    if file is None:
        return
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    # Without O_CREAT: a process that outlives the supervisor must not make the removed file again.
    # A job must not fail because its progress cannot be written, for example on a full disk.
    with suppress(OSError):
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, line)  # one call: lines of two processes do not mix
        finally:
            os.close(descriptor)
