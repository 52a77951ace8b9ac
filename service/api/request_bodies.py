"""Bodies of requests to the API; `answers` has those of its responses."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.api.access import TokenScope
from service.queue.job import HIGHEST, LOWEST
from service.queue.requests import Request

Priority = Annotated[int, Field(ge=LOWEST, le=HIGHEST)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
"""Name of a user."""
Alias = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,99}$")]
"""Alias of a registered model."""


class RequestBody(BaseModel):
    """A request body; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class Submission(RequestBody):
    """A job to submit, with its priority and its number of attempts."""

    job: Request
    """The job: check, train, tune or score."""
    priority: Priority = 0
    """Priority among the jobs of the same owner; a job with a higher priority starts earlier."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """Maximum number of attempts; a job that fails in all of them has failed."""


class PriorityChange(RequestBody):
    """A new priority."""

    priority: Priority
    """Priority among the jobs of the same owner; a job with a higher priority starts earlier."""


class TokenRequest(RequestBody):
    """A token to create."""

    owner: Name
    """User whose jobs the token's requests create."""
    scope: TokenScope
    """What the token allows; each scope includes those before it: read, submit, promote, admin."""
    days: Annotated[float, Field(gt=0, le=36500)] | None = None
    """Lifetime in days. Omitted: the service's `token_days`. null: no end, if the service allows it."""
    note: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = None
    """Purpose of the token, for people."""


class TokenRotation(RequestBody):
    """How a token is replaced."""

    grace_s: Annotated[float, Field(ge=0, le=86400)] = 3600.0
    """Seconds for which the old secret stays valid."""


class Login(RequestBody):
    """An ID token from the identity provider."""

    id_token: Annotated[str, Field(min_length=1, max_length=100_000, pattern=r"^[A-Za-z0-9_.-]+$")]
    """ID token of OpenID Connect: a signed JWT."""
    nonce: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """Nonce that the client sent to the provider; null: it sent none."""


class Promotion(RequestBody):
    """A registered model, and the alias that it gets."""

    model: Annotated[
        str, Field(max_length=400, pattern=r"^models:/[^/@:\x00-\x1f\x7f]{1,250}(@[A-Za-z0-9_-]{1,100}|/[0-9]{1,9})$")
    ]
    """The model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`."""
    alias: Alias = "champion"
    """The alias to set. MLflow reserves `latest`, and v with a number."""
