"""What an attempt leaves in the object store: signs of life, its log in parts, how it ended. It outlives the cluster.

STORAGE/jobs/JOB/attempts/N/beat.json     rewritten every few seconds by the witness beside the job
STORAGE/jobs/JOB/attempts/N/log/00000.txt ...
STORAGE/jobs/JOB/attempts/N/stop          written by the service, with the reason: the witness ends its command
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
"""Of a part of the log; the last part is rewritten as it grows."""


def _or_none(value: Any, validated: Callable[[Any], Progress]) -> Progress:
    """Progress as the tables take it; one that they would refuse must not hide the sign of life."""
    try:
        return validated(value)
    except ValueError:
        return Progress()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How the command ended."""

    exit_code: Annotated[int, Field(ge=0, le=255)]
    last: str
    """The error that it named, or its last line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """A sign of life."""

    count: int
    """Grows with each."""
    log_bytes: int
    """Of the log so far."""
    progress: Annotated[Progress, WrapValidator(_or_none)] = field(default_factory=Progress)
    ending: Ending | None = None
    idle_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since progress or log last changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Why an attempt is to end."""

    reason: str = "stopped"
    final: bool = False
    """True: there is no other attempt."""


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
        """The newest sign of life; None before the first.

        Raises:
            StorageError: it cannot be read, or is malformed: a job can write its own folder.
        """
        try:
            return BEAT.validate_json(storage.read_bytes(self._at("beat.json")))
        except NotFoundError:
            return None
        except ValueError as error:  # pydantic's
            raise StorageError("the sign of life is malformed", uri=self._at("beat.json")) from error

    def begun(self) -> bool:
        """Whether a witness has started here."""
        return storage.exists(self._at("beat.json"))

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

    def stop(self, stop: Stop) -> None:
        """Make the command here end; the first reason stays."""
        if not self.stopped():
            storage.write_bytes(self._at("stop"), json.dumps(asdict(stop)).encode())

    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return storage.exists(self._at("stop"))

    def why_stopped(self) -> Stop | None:
        """Why `stop` was called; None if it was not."""
        try:
            return STOP.validate_json(storage.read_bytes(self._at("stop")))
        except NotFoundError:
            return None
        except ValueError:  # written by an earlier version
            return Stop()

    def _at(self, name: str) -> str:
        return storage.join(self.uri, name)


BEAT = TypeAdapter(Beat)
STOP = TypeAdapter(Stop)


def attempt_folder(job_folder: str, number: int) -> AttemptFolder:
    """The folder of a job's attempt."""
    return AttemptFolder(storage.join(job_folder, f"attempts/{number}"))
