"""What the API tells: the shapes of its answers, shared with the client."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.queue.job import HIGHEST, LOWEST
from service.queue.requests import Request

JobState = Literal["queued", "starting", "running", "cancelling", "done", "failed", "cancelled"]
Priority = Annotated[int, Field(ge=LOWEST, le=HIGHEST)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]


class Closed(BaseModel):
    """A body whose unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class Submission(Closed):
    """A job, and how it is to be treated."""

    job: Request
    priority: Priority = 0
    """Among the jobs of the same owner; higher is earlier."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """Attempts after which a job that keeps failing is given up."""


class ProgressView(BaseModel):
    """How far a job says it is."""

    activity: str | None
    done: int | None
    total: int | None
    eta_s: float | None


class AttemptView(BaseModel):
    """One attempt."""

    number: int
    state: str
    reason: str | None
    exit_code: int | None
    started_s: float
    ended_s: float | None
    ray_job: str
    """Link to Ray's dashboard."""


class JobSummary(BaseModel):
    """A job in a list; times are seconds since 1970."""

    id: str
    kind: str
    owner: str
    state: JobState
    reason: str | None
    priority: int
    attempt: int
    max_attempts: int
    created_s: float
    started_s: float | None
    ended_s: float | None
    due_s: float
    beat_s: float | None
    """Its last sign of life."""
    progress: ProgressView
    source: str | None
    """The watch or schedule that made it."""


class JobView(JobSummary):
    """A job in full."""

    request: dict[str, Any]
    attempts: list[AttemptView]
    mlflow_run: str | None
    """Link to the run, or its id where MLflow is no server."""
    results: str | None
    """Folder of a scoring's table and pictures."""


class JobPage(BaseModel):
    """Some jobs, newest first."""

    jobs: list[JobSummary]
    next: int | None
    """For `before`, to see older ones; null: there are none."""


class PriorityChange(Closed):
    """A new priority."""

    priority: Priority


class TokenRequest(Closed):
    """A token that is wanted."""

    owner: Name
    scope: Literal["read", "submit", "admin"]
    days: Annotated[float, Field(gt=0, le=36500)] | None = None
    """Until it expires; null: never."""


class TokenView(BaseModel):
    """A token, without its secret."""

    id: str
    owner: str
    scope: str
    created_s: float
    expires_s: float | None
    revoked_s: float | None


class NewToken(TokenView):
    """A token that was just made."""

    secret: str
    """Told only here."""


class RecurringView(BaseModel):
    """A watch or a schedule."""

    id: str
    owner: str
    what: Literal["watch", "schedule"]
    next_s: float
    note: str | None
    """What the last look found."""
    disabled: str | None
    """Why it makes no jobs any more; null: it does."""
    body: dict[str, Any]
