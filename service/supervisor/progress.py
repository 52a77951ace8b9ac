"""Reads the file to which a job appends its progress (`service.progress.file`).

The job is not trusted: what it writes must neither end, nor block, nor fill the supervisor. Malformed records and
unknown keys are ignored.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from service.progress.file import LONGEST_RECORD_BYTES
from service.progress.record import Progress
from service.supervisor.secrets import Mask

MAX_READ_BYTES = 64 << 10
"""Bound of one read. Of a file that grew by more, only the end is read: the newest record is the one that counts."""
MAX_REASON_CHARS = 500
"""Bound of the reason of a failure."""

PROGRESS = TypeAdapter(Progress)


class ProgressReader:
    """Makes a progress file and follows it; a context manager that removes the file at the end.

    Args:
        mask: replaces secrets in the job's texts.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        # A new, empty file for each attempt. It is read through this descriptor only: if the job replaces the file, by
        # a pipe for example, the supervisor does not open what it finds there.
        self._descriptor, path = tempfile.mkstemp(prefix="magnet-progress-", suffix=".jsonl")
        self.path = Path(path)
        self._offset = 0
        self._incomplete = b""
        self.progress = Progress()
        """The newest progress."""
        self.error = ""
        """The error that the job recorded at its end, in one line; empty if none."""
        self.changed_s = time.monotonic()
        """When the progress last changed, on the monotonic clock."""

    def __enter__(self) -> ProgressReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        with suppress(OSError):  # the job may have removed it, or put a folder in its place
            self.path.unlink()

    def read(self) -> None:
        """Read the records that were appended since the last call."""
        size = os.fstat(self._descriptor).st_size
        if not self._offset <= size <= self._offset + MAX_READ_BYTES:  # the job truncated the file, or flooded it
            self._offset, self._incomplete = max(0, size - MAX_READ_BYTES), b""
        data = os.pread(self._descriptor, MAX_READ_BYTES, self._offset)
        self._offset += len(data)
        *lines, rest = (self._incomplete + data).split(b"\n")
        self._incomplete = rest[: LONGEST_RECORD_BYTES + 1]  # the extra byte marks it as too long when its end arrives
        for line in lines:
            if len(line) <= LONGEST_RECORD_BYTES:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                return
            values = {key: self._mask(value) if isinstance(value, str) else value for key, value in record.items()}
            later = PROGRESS.validate_python(values)
        except (ValueError, RecursionError):  # pydantic's errors are ValueErrors; deep nesting exhausts the stack
            return
        progress = self.progress.apply(later)
        if progress.differs_from(self.progress):
            self.changed_s = time.monotonic()
        self.progress = progress
        self.error = _reason(values.get("error")) or self.error


def _reason(error: Any) -> str:
    """Return an error in one line: of several problems, one per indented line, the first is named."""
    if not isinstance(error, str):
        return ""
    first, *others = error.strip().splitlines() or [""]
    detail = f": {others[0].strip()}" if others and others[0].startswith("  ") else ""
    return f"{first.strip()}{detail}"[:MAX_REASON_CHARS]
