"""What the API tells: the shapes of its answers, shared with the client."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.queue.job import HIGHEST, LOWEST
from service.queue.requests import Request

JobState = Literal["queued", "starting", "running", "cancelling", "done", "failed", "cancelled"]
Priority = Annotated[int, Field(ge=LOWEST, le=HIGHEST)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]


Scope = Literal["read", "submit", "promote", "admin"]
Alias = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,99}$", description="not `latest`, not v and a number")]


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
    delete_requested: bool = False
    """It will be removed soon, with its files."""


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
    """A token that is requested."""

    owner: Name
    scope: Scope
    days: Annotated[float, Field(gt=0, le=36500)] | None = None
    """Until it expires; left out: the service's `token_days`; null: never, where the service allows that."""
    note: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = None
    """For people: what it is for."""


class TokenRotation(Closed):
    """How a token is replaced."""

    grace_s: Annotated[float, Field(ge=0, le=86400)] = 3600.0
    """Seconds for which the old secret stays valid."""


class TokenView(BaseModel):
    """A token, without its secret; times are seconds since 1970."""

    id: str
    owner: str
    scope: str
    created_s: float
    expires_s: float | None
    revoked_s: float | None
    note: str | None = None
    last_used_s: float | None = None
    """To the minute."""
    groups: list[str] = []
    """Of its owner, as a login named them."""


class NewToken(TokenView):
    """A token that was just made."""

    secret: str
    """Shown only here."""


class Usage(BaseModel):
    """A limit, and how much of it is used."""

    used: int
    limit: int


class WhoAmI(BaseModel):
    """The caller."""

    owner: str
    scope: str
    groups: list[str]
    """Those of the service's settings and those of the login."""
    token_id: str
    expires_s: float | None
    """Seconds since 1970; null: never."""
    queued: Usage
    running: Usage
    recurring: Usage
    followed: Usage


class LoginOffer(BaseModel):
    """Where a user logs in."""

    issuer: str
    client_id: str


class Login(Closed):
    """What the provider gave a user."""

    id_token: Annotated[str, Field(min_length=1, max_length=100_000, pattern=r"^[A-Za-z0-9_.-]+$")]
    nonce: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """That the login asked for."""


class Promotion(Closed):
    """A model that gets an alias."""

    model: Annotated[
        str, Field(max_length=400, pattern=r"^models:/[^/@:\x00-\x1f\x7f]{1,250}(@[A-Za-z0-9_-]{1,100}|/[0-9]{1,9})$")
    ]
    """models:/NAME@ALIAS or models:/NAME/VERSION."""
    alias: Alias = "champion"


class Promoted(BaseModel):
    """A model whose alias was set."""

    name: str
    alias: str
    version: str
    earlier: str | None
    """Version that the alias stood for before; null: none."""


class AuditRow(BaseModel):
    """A row of the audit log."""

    seq: int
    at_s: float
    """Seconds since 1970."""
    actor: str
    token_id: str | None
    address: str | None
    action: str
    object: str | None
    outcome: str
    detail: str | None
    digest: str
    """SHA-256 of this row and the digest before it."""


class AuditPage(BaseModel):
    """Some rows of the audit log, oldest first."""

    rows: list[AuditRow]
    next: int | None
    """For `after`, to see later ones; null: there are none."""


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
