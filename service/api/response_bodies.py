"""Bodies of the API's responses, shared by the API and its client.

This module imports nothing but pydantic, since every command of `magnet` loads it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

JobState = Literal["queued", "starting", "running", "cancelling", "done", "failed", "cancelled"]


class ResponseBody(BaseModel):
    """A response body. Pydantic builds its validator on first use, which keeps commands fast."""

    model_config = ConfigDict(defer_build=True)


class ProgressView(ResponseBody):
    """Progress of a job, as the job reports it."""

    activity: str | None
    """What the job does, such as `training`; null: unknown."""
    done: int | None
    """Number of units done, such as steps or slides."""
    total: int | None
    """Number of all units."""
    eta_s: float | None
    """Estimated seconds until the activity is done."""


class AttemptView(ResponseBody):
    """One attempt to run a job; times are seconds since 1970."""

    number: int
    """Number of the attempt, from 1."""
    state: str
    """State of the attempt."""
    reason: str | None
    """Why the attempt ended; null: it succeeded, or has not ended."""
    exit_code: int | None
    """Exit status of the job's process; null: unknown."""
    started_s: float
    """Time at which the attempt started."""
    ended_s: float | None
    """Time at which the attempt ended."""
    ray_job: str
    """Link to the attempt in Ray's dashboard."""


class JobSummary(ResponseBody):
    """A job as lists show it; times are seconds since 1970."""

    id: str
    """ID of the job."""
    kind: str
    """Kind of the job: check, train, tune or score."""
    owner: str
    """User who submitted the job."""
    state: JobState
    """State of the job."""
    reason: str | None
    """Why the job is in this state; null: no reason is needed."""
    priority: int
    """Priority among the owner's jobs; a job with a higher priority starts earlier."""
    attempt: int
    """Number of the newest attempt; 0: none has started."""
    max_attempts: int
    """Maximum number of attempts."""
    created_s: float
    """Time of submission."""
    started_s: float | None
    """Start of the first attempt."""
    ended_s: float | None
    """Time at which the job ended."""
    due_s: float
    """Earliest time of the next attempt."""
    beat_s: float | None
    """Time of the last heartbeat."""
    progress: ProgressView
    """Progress of the newest attempt."""
    source: str | None
    """Watch or schedule that submitted the job; null: a user did."""
    delete_requested: bool = False
    """Whether the job will be deleted soon, with its files."""


class JobView(JobSummary):
    """A job with its request, attempts and links."""

    request: dict[str, Any]
    """The job as it was submitted, with all settings."""
    attempts: list[AttemptView]
    """All attempts, oldest first."""
    mlflow_run: str | None
    """Link to the MLflow run, or its ID where MLflow is not a server."""
    results: str | None
    """Folder of a scoring's tables and pictures; null: the job is not a scoring."""


class JobPage(ResponseBody):
    """A page of the list of jobs, newest first."""

    jobs: list[JobSummary]
    """The jobs."""
    next: int | None
    """Value of `before` for the next page, with older jobs; null: this is the last page."""


class TokenView(ResponseBody):
    """A token, without its secret; times are seconds since 1970."""

    id: str
    """ID of the token."""
    owner: str
    """User whose requests carry the token."""
    scope: str
    """What the token allows: read, submit, promote or admin."""
    created_s: float
    """Time of creation."""
    expires_s: float | None
    """Time at which the token expires; null: never."""
    revoked_s: float | None
    """Time at which the token was revoked; null: it was not."""
    note: str | None = None
    """Purpose of the token, for people."""
    last_used_s: float | None = None
    """Time of the last use, to the minute; null: it was never used."""
    groups: list[str] = []
    """Groups of the owner, as a login named them."""


class NewToken(TokenView):
    """A new token, with its secret."""

    secret: str
    """Secret of the token; only this response shows it."""


class Usage(ResponseBody):
    """A limit, and how much of it is used."""

    used: int
    """Number in use."""
    limit: int
    """Maximum number."""


class WhoAmI(ResponseBody):
    """The caller, with limits and usage."""

    owner: str
    """User who owns the token."""
    scope: str
    """What the token allows: read, submit, promote or admin."""
    groups: list[str]
    """Groups from the service's settings and from the login."""
    token_id: str
    """ID of the token."""
    expires_s: float | None
    """Time at which the token expires, in seconds since 1970; null: never."""
    queued: Usage
    """Jobs that wait."""
    running: Usage
    """Jobs that run."""
    recurring: Usage
    """Watches and schedules."""
    followed: Usage
    """Logs and events that are followed."""


class LoginOffer(ResponseBody):
    """The identity provider at which users log in."""

    issuer: str
    """URL of the provider."""
    client_id: str
    """ID of this service at the provider."""


class Promoted(ResponseBody):
    """A model whose alias was set."""

    name: str
    """Name of the registered model."""
    alias: str
    """The alias."""
    version: str
    """Version that the alias points at now."""
    earlier: str | None
    """Version that the alias pointed at before; null: the alias is new."""


class AuditRow(ResponseBody):
    """A row of the audit log."""

    seq: int
    """Number of the row."""
    at_s: float
    """Time of the action, in seconds since 1970."""
    actor: str
    """User who acted; `-`: the request had no valid token."""
    token_id: str | None
    """ID of the token that the request carried."""
    address: str | None
    """IP address of the client."""
    action: str
    """What was done, such as `job.submit`."""
    object: str | None
    """What it was done to, such as a job's ID."""
    outcome: str
    """Outcome: ok, denied, asked or failed."""
    detail: str | None
    """More, in plain text."""
    digest: str
    """SHA-256 of this row and of the digest of the row before it."""


class AuditPage(ResponseBody):
    """A page of the audit log, oldest rows first."""

    rows: list[AuditRow]
    """The rows."""
    next: int | None
    """Value of `after` for the next page, with later rows; null: this is the last page."""


class RecurringView(ResponseBody):
    """A watch or a schedule."""

    id: str
    """ID of the watch or schedule."""
    owner: str
    """User whose jobs it submits."""
    what: Literal["watch", "schedule"]
    """Whether it is a watch or a schedule."""
    next_s: float
    """Time of its next run, in seconds since 1970."""
    note: str | None
    """Outcome of its last run; null: it has not run yet."""
    disabled: str | None = None
    """Why it submits no more jobs; null: it is active."""
    body: dict[str, Any]
    """The watch or schedule as it was added."""
