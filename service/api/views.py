"""Bodies of requests to the API; those of its answers are in `answers`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.answers import (
    AttemptView,
    JobPage,
    JobState,
    JobSummary,
    JobView,
    NewToken,
    ProgressView,
    RecurringView,
    TokenView,
)
from service.queue.job import HIGHEST, LOWEST
from service.queue.requests import Request

__all__ = [
    "AttemptView",
    "Closed",
    "JobPage",
    "JobState",
    "JobSummary",
    "JobView",
    "Name",
    "NewToken",
    "Priority",
    "PriorityChange",
    "ProgressView",
    "RecurringView",
    "Submission",
    "TokenRequest",
    "TokenView",
]

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


class PriorityChange(Closed):
    """A new priority."""

    priority: Priority


class TokenRequest(Closed):
    """A token that is wanted."""

    owner: Name
    scope: Literal["read", "submit", "admin"]
    days: Annotated[float, Field(gt=0, le=36500)] | None = None
    """Until it expires; null: never."""
