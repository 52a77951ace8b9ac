"""The folder of an attempt in the object store: heartbeats, log, how it ended. It outlives the cluster.

STORAGE/jobs/JOB/attempts/N/beat.json     the heartbeat; the job's supervisor rewrites it every few seconds
STORAGE/jobs/JOB/attempts/N/log/00000.txt the log in parts
STORAGE/jobs/JOB/attempts/N/stop          a request to stop, with its reason; the service writes it
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, WrapValidator

from service import storage
from service.errors import NotFoundError, StorageError
from service.progress.record import Progress

PART_BYTES = 256 << 10
"""Size of a full part of the log; the last part is rewritten as it grows."""


def _valid_or_empty(value: Any, validate: Callable[[Any], Progress]) -> Progress:
    """Return the progress, or an empty one if it is invalid: a heartbeat counts also without its progress."""
    try:
        return validate(value)
    except ValueError:
        return Progress()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How the command ended."""

    exit_code: Annotated[int, Field(ge=0, le=255)]
    """Exit status of the command; 128 + N after signal N."""
    last: str
    """The error that the command recorded, or else the exception or the last line that it printed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """A heartbeat: the newest state of a running command."""

    count: int
    """Number of the heartbeat, which grows with each."""
    log_bytes: int
    """Size of the log so far in bytes."""
    progress: Annotated[Progress, WrapValidator(_valid_or_empty)] = field(default_factory=Progress)
    """How far the job is."""
    ending: Ending | None = None
    """How the command ended; None while it runs."""
    idle_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since the progress or the log last changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """A request to end an attempt."""

    reason: str = "stopped"
    """Why the attempt must end."""
    final: bool = False
    """True: the job gets no further attempt."""


class AttemptFolder:
    """The folder of one attempt.

    Args:
        uri: a path or URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def write_beat(self, beat: Heartbeat) -> None:
        """Replace the heartbeat."""
        storage.write_bytes(self._file("beat.json"), json.dumps(asdict(beat)).encode())

    def beat(self) -> Heartbeat | None:
        """Return the newest heartbeat; None before the first.

        Raises:
            StorageError: it cannot be read, or is malformed, since a job can write into its own folder.
        """
        try:
            return BEAT.validate_json(storage.read_bytes(self._file("beat.json")))
        except NotFoundError:
            return None
        except ValueError as error:  # pydantic's
            raise StorageError("the heartbeat is malformed", uri=self._file("beat.json")) from error

    def has_started(self) -> bool:
        """Return whether a supervisor has started here."""
        return storage.exists(self._file("beat.json"))

    def write_log(self, part: int, data: bytes) -> None:
        """Replace a part of the log."""
        storage.write_bytes(self._file(f"log/{part:05}.txt"), data)

    def log(self, offset: int, most_bytes: int) -> bytes:
        """Read a piece of the log; empty at its end.

        Args:
            offset: first byte.
            most_bytes: bound of the number of bytes.
        """
        text = b""
        part, skip = divmod(offset, PART_BYTES)
        while len(text) < most_bytes:
            try:
                data = storage.read_bytes(self._file(f"log/{part:05}.txt"))
            except NotFoundError:
                break
            text += data[skip:]
            if len(data) < PART_BYTES:
                break
            part, skip = part + 1, 0
        return text[:most_bytes]

    def request_stop(self, stop: Stop) -> None:
        """Make the supervisor end its command; the reason of the first request stays."""
        if not self.is_stop_requested():
            storage.write_bytes(self._file("stop"), json.dumps(asdict(stop)).encode())

    def is_stop_requested(self) -> bool:
        """Return whether the attempt must end."""
        return storage.exists(self._file("stop"))

    def stop_request(self) -> Stop | None:
        """Return the request to end; None if there is none."""
        try:
            return STOP.validate_json(storage.read_bytes(self._file("stop")))
        except NotFoundError:
            return None
        except ValueError:  # earlier versions of the program wrote no JSON
            return Stop()

    def _file(self, name: str) -> str:
        return storage.join(self.uri, name)


BEAT = TypeAdapter(Heartbeat)
STOP = TypeAdapter(Stop)


def attempt_folder(job_folder: str, number: int) -> AttemptFolder:
    """Return the folder of a job's attempt.

    Args:
        job_folder: path or URI of the job's folder.
        number: of the attempt, from 1.
    """
    return AttemptFolder(storage.join(job_folder, f"attempts/{number}"))
