"""What an attempt leaves in the object store: signs of life, its log in parts, how it ended. It outlives the cluster.

STORAGE/jobs/JOB/attempts/N/beat.json     rewritten every few seconds by the witness beside the job
STORAGE/jobs/JOB/attempts/N/log/00000.txt ...
STORAGE/jobs/JOB/attempts/N/stop          written by the service: whoever still works here ends
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from service import storage
from service.errors import NotFoundError
from service.queue.job import Progress

PART_BYTES = 256 << 10
"""Of a part of the log; the last part is rewritten as it grows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How the command ended."""

    exit_code: int
    last: str
    """What it said last, or the error it named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """A sign of life."""

    count: int
    """Grows with each."""
    log_bytes: int
    """Of the log so far."""
    progress: Progress = field(default_factory=Progress)
    ending: Ending | None = None


class AttemptFolder:
    """The folder of one attempt.

    Args:
        uri: a path or URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def write_beat(self, beat: Beat) -> None:
        """Replace the sign of life."""
        storage.write_bytes(self._at("beat.json"), json.dumps(asdict(beat)).encode())

    def beat(self) -> Beat | None:
        """The newest sign of life; None before the first."""
        try:
            values = json.loads(storage.read_bytes(self._at("beat.json")))
        except NotFoundError:
            return None
        ending = values.pop("ending")
        progress = Progress(**values.pop("progress"))
        return Beat(progress=progress, ending=None if ending is None else Ending(**ending), **values)

    def write_log(self, part: int, data: bytes) -> None:
        """Replace a part of the log."""
        storage.write_bytes(self._at(f"log/{part:05}.txt"), data)

    def log(self, offset: int, most_bytes: int) -> bytes:
        """The log from a byte on; empty at its end.

        Args:
            offset: in bytes.
            most_bytes: how many at most.
        """
        found = b""
        part, skip = divmod(offset, PART_BYTES)
        while len(found) < most_bytes:
            try:
                data = storage.read_bytes(self._at(f"log/{part:05}.txt"))
            except NotFoundError:
                break
            found += data[skip:]
            if len(data) < PART_BYTES:
                break
            part, skip = part + 1, 0
        return found[:most_bytes]

    def stop(self) -> None:
        """Tell whoever works here to end."""
        storage.write_bytes(self._at("stop"), b"stop\n")

    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return storage.exists(self._at("stop"))

    def _at(self, name: str) -> str:
        return storage.join(self.uri, name)


def attempt_folder(job_folder: str, number: int) -> AttemptFolder:
    """The folder of a job's attempt."""
    return AttemptFolder(storage.join(job_folder, f"attempts/{number}"))
