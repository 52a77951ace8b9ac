"""The rows of the queue's tables as types, and the states of a job.

queued -> starting -> running -> done | failed | cancelled, and back to queued before another attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["queued", "starting", "running", "done", "failed", "cancelled"]
ACTIVE = ("starting", "running")
"""States of a job with an attempt that has not ended."""
ENDED = ("done", "failed", "cancelled")
"""States that only a user changes, by a retry or a deletion."""
STATES = ("queued", *ACTIVE, *ENDED)

LOWEST, HIGHEST = -10, 10
"""Bounds of priorities; a higher one is earlier among the jobs of its owner."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A row of the jobs table; times are seconds since 1970."""

    seq: int
    """Number of the row; it grows with each submission."""
    id: str
    """Id of the job, also the name of its run and of its folder."""
    kind: str
    """Kind of the job, such as "train"."""
    owner: str
    """User who submitted it."""
    request: str
    """The job as data, in JSON."""
    state: State
    """State of the job."""
    reason: str | None
    """Why the job ended or waits, for its user."""
    priority: int
    """Priority among the jobs of its owner."""
    idempotency_key: str | None
    """Key of the submission: the same key makes no second job."""
    attempt: int
    """Number of the newest attempt; 0 before the first."""
    first_attempt: int
    """Number of the first attempt since the last retry by hand."""
    max_attempts: int
    """Bound of the number of attempts since then."""
    cancel_requested: int
    """1 if a user has cancelled the job."""
    created_s: float
    """Time of the submission."""
    due_s: float
    """Time before which the job must not start."""
    started_s: float | None
    """Time of the start of the newest attempt."""
    ended_s: float | None
    """Time of the end of the job."""
    beat_s: float | None
    """Time of the newest heartbeat."""
    done: int | None
    """As in `Progress`."""
    total: int | None
    """As in `Progress`."""
    eta_s: float | None
    """As in `Progress`."""
    activity: str | None
    """As in `Progress`."""
    mlflow_run: str | None
    """As in `Progress`."""
    source: str | None
    """Id of the watch or schedule that submitted the job."""
    moved_s: float | None
    """Time of the last change of progress or log."""
    delete_requested: int
    """0, or why the job is deleted: `service.queue.store.BY_USER` or `EXPIRED`."""
    groups: str
    """Groups of the owner, as the login named them at the submission, in JSON."""

    @property
    def attempts_left(self) -> int:
        """Number of attempts that are left of `max_attempts`."""
        return self.max_attempts - (self.attempt - self.first_attempt + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A row of the attempts table; times are seconds since 1970."""

    job_id: str
    """Id of the job."""
    number: int
    """Number of the attempt, from 1."""
    submission_id: str
    """Id under which Ray knows the attempt."""
    state: str
    """State of the attempt, as of a job."""
    reason: str | None
    """Why the attempt ended."""
    exit_code: int | None
    """Exit status of its command; None if it is not known."""
    started_s: float
    """Time at which Ray took the attempt."""
    ended_s: float | None
    """Time of its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A row of the events table: something that happened to a job."""

    seq: int
    """Number of the row; it grows with each event."""
    job_id: str
    """Id of the job."""
    at_s: float
    """Time in seconds since 1970."""
    state: str
    """State of the job after the event."""
    text: str
    """What happened."""
