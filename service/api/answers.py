"""Bodies of the API's answers, shared by the API and its client.

This module imports nothing but pydantic: every command of `magnet` loads it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

JobState = Literal["queued", "starting", "running", "cancelling", "done", "failed", "cancelled"]


class Answer(BaseModel):
    """A body of an answer. Its validator is built when it is first used, which keeps commands fast."""

    model_config = ConfigDict(defer_build=True)


class ProgressView(Answer):
    """Progress of a job, as the job reports it."""

    activity: str | None
    done: int | None
    total: int | None
    eta_s: float | None


class AttemptView(Answer):
    """One attempt of a job."""

    number: int
    state: str
    reason: str | None
    exit_code: int | None
    started_s: float
    ended_s: float | None
    ray_job: str
    """Link to Ray's dashboard."""


class JobSummary(Answer):
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


class JobPage(Answer):
    """Some jobs, newest first."""

    jobs: list[JobSummary]
    next: int | None
    """For `before`, to list older ones; null: there are none."""


class TokenView(Answer):
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
    """Shown only in this answer."""


class Usage(Answer):
    """A limit, and how much of it is used."""

    used: int
    limit: int


class WhoAmI(Answer):
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


class LoginOffer(Answer):
    """Where a user logs in."""

    issuer: str
    client_id: str


class Promoted(Answer):
    """A model whose alias was set."""

    name: str
    alias: str
    version: str
    earlier: str | None
    """Version that the alias stood for before; null: none."""


class AuditRow(Answer):
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


class AuditPage(Answer):
    """Some rows of the audit log, oldest first."""

    rows: list[AuditRow]
    next: int | None
    """For `after`, to see later ones; null: there are none."""


class RecurringView(Answer):
    """A watch or a schedule."""

    id: str
    owner: str
    what: Literal["watch", "schedule"]
    next_s: float
    note: str | None
    """Outcome of its last run."""
    disabled: str | None = None
    """Why it makes no more jobs; null: it is active."""
    body: dict[str, Any]
