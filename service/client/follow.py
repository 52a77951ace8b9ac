"""Logs and events of a job, read piece by piece by polling.

A restart of the service or a broken connection loses no byte and repeats none, since each request names the byte at
which to continue.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.queue.job import ENDED

if TYPE_CHECKING:
    from service.client.client import Client, JobEvent

FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 3.0
"""Seconds between two requests while there is nothing new: at first, and at most."""
PAUSE_GROWTH = 1.5
"""Factor by which the pause grows while there is nothing new."""
FOREVER = float("inf")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPiece:
    """A piece of an attempt's log."""

    attempt: int
    """Number of the attempt; 0: no attempt has started."""
    data: bytes
    """Bytes of the log."""
    next_offset: int
    """Offset of the first byte after `data`."""


def read_log(client: Client, job_id: str, attempt: int | None = None) -> Iterator[str]:
    """Yield the current log of an attempt.

    Args:
        client: client of the service.
        job_id: ID of the job.
        attempt: number of the attempt; None: the newest attempt.
    """
    piece = client.log_piece(job_id, attempt=attempt, offset=0)
    decoder = _make_decoder()
    while piece.data:
        yield decoder.decode(piece.data)
        piece = client.log_piece(job_id, attempt=piece.attempt, offset=piece.next_offset)
    yield decoder.decode(b"", final=True)


def follow_log(client: Client, job_id: str, attempt: int | None = None) -> Iterator[str]:
    """Yield a log until the job has ended. After the first response, the service may be down for any time.

    Args:
        client: client of the service.
        job_id: ID of the job.
        attempt: number of the only attempt to follow; None: the newest attempt and all later ones.
    """
    job = client.job(job_id)
    number, offset, decoder, pauses = attempt or job.attempt, 0, _make_decoder(), _Pauses()
    while True:
        if number:
            piece = client.log_piece(job_id, attempt=number, offset=offset, patience_s=FOREVER)
            if piece.data:
                offset = piece.next_offset
                yield decoder.decode(piece.data)
                pauses.restart()
                continue
        # `job` was read before the log: an attempt that had ended then has no more to write.
        if job.attempt > number > 0 or job.state in ENDED:
            yield decoder.decode(b"", final=True)
            # Later attempts are followed only if no attempt was named.
            if attempt is not None or job.attempt <= number:
                return
            number, offset, decoder = number + 1, 0, _make_decoder()
            yield f"--- attempt {number} ---\n"
            continue
        pauses.sleep()
        job = client.job(job_id, patience_s=FOREVER)
        number = number or job.attempt


def follow_events(client: Client, job_id: str) -> Iterator[JobEvent]:
    """Yield events of a job until it has ended. After the first response, the service may be down for any time.

    Args:
        client: client of the service.
        job_id: ID of the job.
    """
    job, after, pauses = client.job(job_id), 0, _Pauses()
    while True:
        for event in client.events(job_id, after=after, patience_s=FOREVER):
            after = event.seq
            yield event
            pauses.restart()
        if job.state in ENDED:
            return
        pauses.sleep()
        job = client.job(job_id, patience_s=FOREVER)


class _Pauses:
    """Pauses that grow while there is nothing new."""

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    def restart(self) -> None:
        self._next_s = FIRST_PAUSE_S

    def sleep(self) -> None:
        time.sleep(self._next_s)
        self._next_s = min(self._next_s * PAUSE_GROWTH, MAX_PAUSE_S)


def _make_decoder() -> codecs.IncrementalDecoder:
    """Return a decoder that keeps the bytes of a character that is cut at the end of a piece."""
    return codecs.getincrementaldecoder("utf-8")("replace")
