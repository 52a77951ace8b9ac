"""Bodies of requests to the API; those of its answers are in `answers`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.queue.job import HIGHEST, LOWEST
from service.queue.requests import Request

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
