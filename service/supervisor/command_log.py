"""Keeps what a job's command prints: masked, in parts of fixed size, for the attempt's folder."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from typing import BinaryIO

from service.queue.attempt_folder import PART_BYTES, AttemptFolder
from service.supervisor.job_lines import CHATTER, COLOUR
from service.supervisor.reason import Reason
from service.supervisor.secrets import Mask

MAX_PARTS = 400
"""Bound of the log in parts (100 MiB); what the command prints after that is not kept."""
LONGEST_LINE = 64 << 10
"""Bound of a line in bytes; a longer line is kept in pieces."""


class CommandLog:
    """The output of a command, with secrets masked, and without colours and the chatter of Ray.

    A thread reads the output while another one writes the parts, hence the lock.

    Args:
        mask: replaces secrets.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._lock = threading.Lock()
        self._parts: list[bytearray] = [bytearray()]
        self._num_written = 0
        self._reason = Reason()
        self.changed_s = time.monotonic()
        """When the log last grew, on the monotonic clock."""

    def read(self, stream: BinaryIO) -> None:
        """Read a stream to its end. Progress bars, which redraw their line, are not kept."""
        rest = b""
        while data := os.read(stream.fileno(), 1 << 16):
            *lines, rest = re.split(rb"(?<=[\r\n])", rest + data)
            for line in lines:
                self._take(line)
            if len(rest) > LONGEST_LINE:
                rest = self._take_piece(rest)
        if rest:
            self._take(rest + b"\n")

    def _take_piece(self, line: bytes) -> bytes:
        """Take the beginning of a long line, without cutting a secret in two; return what is left of the line."""
        cut = self._mask.cut(line, LONGEST_LINE)
        self._take(line[:cut] + b"\n")
        return line[cut:]

    def _take(self, piece: bytes) -> None:
        line = self._mask(COLOUR.sub("", piece.decode(errors="replace")).rstrip("\r\n"))
        if piece.endswith(b"\r") or CHATTER.search(line):
            return
        with self._lock:
            self.changed_s = time.monotonic()
            self._reason.take(line)
            self._append(f"{line}\n".encode())
        sys.stdout.write(f"{line}\n")  # Ray's dashboard shows the output of the supervisor
        sys.stdout.flush()

    def _append(self, data: bytes) -> None:
        while data and len(self._parts) <= MAX_PARTS:
            room = PART_BYTES - len(self._parts[-1])
            self._parts[-1] += data[:room]
            data = data[room:]
            if data or room == 0:
                self._parts.append(bytearray())

    def write(self, folder: AttemptFolder) -> int:
        """Write the parts that changed since the last call; return the size of the whole log in bytes."""
        with self._lock:
            first = max(self._num_written - 1, 0)  # the last part that was written may have grown
            changed = {k: bytes(self._parts[k]) for k in range(first, len(self._parts))}
            size = (len(self._parts) - 1) * PART_BYTES + len(self._parts[-1])
        for number, data in changed.items():
            folder.write_log(number, data)
        with self._lock:
            self._num_written = first + len(changed)
            for k in range(first, self._num_written - 1):
                self._parts[k] = bytearray()  # a full part that was written is not needed any more
        return size

    def reason(self, *, killed: bool) -> str:
        """Return the exception that the command printed, or else its last line.

        Args:
            killed: whether a signal ended the command. An exception that it printed before is then not the reason.
        """
        with self._lock:
            return self._reason.text(killed=killed)
