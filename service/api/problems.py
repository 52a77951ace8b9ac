"""Errors as problem+json (RFC 9457): what was wrong, and what to do about it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.api.access import ForbiddenError, NoTokenError
from service.api.limits import TooManyRequestsError
from service.api.mlflow_models import MlflowAwayError
from service.api.oidc import LoginError, ProviderAwayError
from service.errors import AccessError, MagnetError, NotFoundError, StorageError, UsageError
from service.queue.job_rows import ConflictError, TooManyJobsError
from service.queue.ray_api import RayAwayError
from service.queue.tables import DatabaseAwayError, DatabaseCorruptError

log = logging.getLogger(__name__)


class NotReadyError(MagnetError):
    """No dispatcher is at work. To act: the service's operator."""


class RefusedError(MagnetError):
    """A request that is refused before any route sees it. To act: the caller.

    Args:
        message: what was wrong.
        status: of HTTP.
        to_do: what to do about it.
    """

    def __init__(self, message: str, status: int = 400, to_do: str = "correct the request", **place: Any) -> None:
        super().__init__(message, **place)
        self.status, self.to_do = status, to_do


STATUS: Mapping[type[MagnetError], tuple[int, str]] = {
    NoTokenError: (401, "send a token: Authorization: Bearer magnet_..."),
    LoginError: (401, "log in at the provider again; GET /v1/login names it"),
    ForbiddenError: (403, "ask an administrator for a token with more rights"),
    TooManyRequestsError: (429, "wait a moment, then go on more slowly"),
    TooManyJobsError: (429, "submit more when some of your jobs have ended"),
    ConflictError: (409, "look at the job as it is now, then decide"),
    NotFoundError: (404, "check its name"),
    AccessError: (403, "name a place that jobs may use"),
    UsageError: (422, "change the request as the detail says"),
    NotReadyError: (503, "an administrator starts one: magnet dispatch"),
    DatabaseCorruptError: (503, "an administrator restores a backup: magnet restore"),
    DatabaseAwayError: (503, "try again in a moment; an administrator sees more in `magnet doctor`"),
    RayAwayError: (503, "try again in a moment; an administrator sees more in `magnet doctor`"),
    ProviderAwayError: (503, "try again in a moment; an administrator looks at `oidc` in the settings"),
    MlflowAwayError: (503, "try again in a moment; an administrator looks at `mlflow` in the settings"),
    StorageError: (503, "try again in a moment; an administrator sees more in `magnet doctor`"),
}
"""Of our errors, the most special first: status and what to do."""

PROBLEM = {
    "type": "object",
    "required": ["title", "status", "detail", "to_do"],
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was wrong."},
        "to_do": {"type": "string", "description": "What to do about it."},
        "wrong": {"type": "array", "items": {"type": "object"}, "description": "Each part that was wrong."},
    },
}
"""The body's schema."""


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: problems that a route can answer with, beside those of every route."""
    content = {"application/problem+json": {"schema": PROBLEM}}
    wanted = {400, 401, 403, 408, 413, 421, 422, 429, 503, *statuses}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in sorted(wanted)}


def problem(status: int, detail: str, to_do: str, wrong: list[dict[str, str]] | None = None) -> Response:
    """An answer that tells an error."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail, "to_do": to_do}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "5"} if status in (429, 503) else {}
    content = json.dumps(body | ({"wrong": wrong} if wrong else {})).encode()  # ASCII: it may quote what is no text
    return Response(content, status, headers, media_type="application/problem+json")


def answer_to(error: MagnetError) -> Response:
    """The answer to one of our errors."""
    if isinstance(error, RefusedError):
        return problem(error.status, str(error), error.to_do)
    status, to_do = next((known for kind, known in STATUS.items() if isinstance(error, kind)), (500, ""))
    if isinstance(error, DatabaseAwayError | DatabaseCorruptError):  # what the driver says names hosts and accounts
        log.error("%s", error)
        return problem(status, "the queue's database does not answer, or is damaged", to_do)
    return problem(status, str(error), to_do or "report it, with the service's log")


def install(app: FastAPI) -> None:
    """Answer every error so."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, MagnetError)
        return answer_to(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        wrong = [{"where": ".".join(map(str, e["loc"])), "what": str(e["msg"])} for e in error.errors()]
        detail = "; ".join(f"{one['where']}: {one['what']}" for one in wrong[:10])
        malformed = any(e["type"] == "json_invalid" for e in error.errors())
        return problem(400 if malformed else 422, detail, "put these right; /openapi.json has the schema", wrong)

    async def plain(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = problem(error.status_code, str(error.detail), "see /docs for what there is")
        for name, value in (error.headers or {}).items():
            answer.headers[name] = value
        return answer

    app.add_exception_handler(MagnetError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
