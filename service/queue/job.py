"""A job as the queue keeps it, and the states it goes through.

queued -> starting -> running -> done | failed | cancelled, and back to queued before another attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["queued", "starting", "running", "done", "failed", "cancelled"]
ACTIVE = ("starting", "running")
"""An attempt is on its way."""
ENDED = ("done", "failed", "cancelled")
"""Nothing more happens by itself."""
STATES = ("queued", *ACTIVE, *ENDED)

LOWEST, HIGHEST = -10, 10
"""Priorities; a higher one is earlier among the jobs of its owner."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A row of the jobs table; times are seconds since 1970."""

    seq: int
    id: str
    kind: str
    owner: str
    request: str
    state: State
    reason: str | None
    priority: int
    idempotency_key: str | None
    attempt: int
    first_attempt: int
    max_attempts: int
    cancel_requested: int
    created_s: float
    due_s: float
    started_s: float | None
    ended_s: float | None
    beat_s: float | None
    done: int | None
    total: int | None
    eta_s: float | None
    activity: str | None
    mlflow_run: str | None
    source: str | None
    moved_s: float | None
    delete_requested: int
    groups: str

    @property
    def attempts_left(self) -> int:
        """Of this round."""
        return self.max_attempts - (self.attempt - self.first_attempt + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A row of the attempts table."""

    job_id: str
    number: int
    submission_id: str
    state: str
    reason: str | None
    exit_code: int | None
    started_s: float
    ended_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A row of the events table: something that happened to a job."""

    seq: int
    job_id: str
    at_s: float
    state: str
    text: str
