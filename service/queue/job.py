"""A job as the queue keeps it, and the states it goes through.

queued -> starting -> running -> done | failed | cancelled, and back to queued before another attempt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

State = Literal["queued", "starting", "running", "done", "failed", "cancelled"]
ACTIVE = ("starting", "running")
"""An attempt is on its way."""
ENDED = ("done", "failed", "cancelled")
"""Nothing more happens by itself."""
STATES = ("queued", *ACTIVE, *ENDED)

ONE_LINE = r"^[^\x00-\x1f\x7f]*$"
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""As the tables take it."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a job says it is."""

    done: Count | None = None
    total: Count | None = None
    eta_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    activity: Annotated[str, Field(max_length=500, pattern=ONE_LINE)] | None = None
    mlflow_run: Annotated[str, Field(max_length=64, pattern=ONE_LINE)] | None = None

    def counted(self) -> tuple[object, ...]:
        """What changes when the job gets on; the estimate of the time to go does so by itself."""
        return self.done, self.total, self.activity, self.mlflow_run

    def then(self, later: Progress) -> Progress:
        """Both, the later one's word being the last; a count belongs to its activity and ends with it."""
        run = later.mlflow_run or self.mlflow_run
        return replace(self if later.activity is None else later, mlflow_run=run)

    def known(self) -> dict[str, Any]:
        """What of it is to be kept: all of what it is at, where it is at something, and the run once there is one."""
        counted = {name: getattr(self, name) for name in ("done", "total", "eta_s", "activity")}
        run = {"mlflow_run": self.mlflow_run} if self.mlflow_run is not None else {}
        return (counted if any(value is not None for value in counted.values()) else {}) | run
