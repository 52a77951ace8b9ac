"""Errors as responses of type problem+json (RFC 9457): what was wrong, and what to do about it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.api.errors import (
    ForbiddenError,
    LoginError,
    MlflowUnavailableError,
    NoTokenError,
    NotReadyError,
    ProviderUnavailableError,
    RefusedError,
    TooManyRequestsError,
)
from service.errors import AccessError, MagnetError, NotFoundError, StorageError, UsageError
from service.queue.job_rows import ConflictError, TooManyJobsError
from service.queue.ray_api import RayUnavailableError
from service.queue.tables import DatabaseCorruptError, DatabaseUnavailableError

log = logging.getLogger(__name__)

RETRY = "try again in a moment; if the error persists, an administrator runs `magnet doctor`"
RETRY_AFTER_S = "5"
"""Seconds after which a client should repeat a request that was refused with 429 or 503."""
MAX_DETAILS = 10
"""Maximum number of invalid fields that the detail names; `wrong` lists all of them."""

PROBLEMS: Mapping[type[MagnetError], tuple[int, str]] = {
    NoTokenError: (401, "send a valid token: Authorization: Bearer magnet_..."),
    LoginError: (401, "log in at the identity provider again; GET /v1/login names it"),
    ForbiddenError: (403, "ask an administrator for a token with more rights"),
    TooManyRequestsError: (429, "wait a moment, then send fewer requests"),
    TooManyJobsError: (429, "submit more jobs when some of yours have ended"),
    ConflictError: (409, "look at the job's current state, then decide"),
    NotFoundError: (404, "check the name"),
    AccessError: (403, "name a place that jobs may use"),
    UsageError: (422, "change the request as the detail says"),
    NotReadyError: (503, "an administrator starts the dispatcher: magnet dispatch"),
    DatabaseCorruptError: (503, "an administrator restores a backup: magnet restore"),
    DatabaseUnavailableError: (503, RETRY),
    RayUnavailableError: (503, RETRY),
    ProviderUnavailableError: (503, "try again in a moment; an administrator checks `oidc` in the settings"),
    MlflowUnavailableError: (503, "try again in a moment; an administrator checks `mlflow` in the settings"),
    StorageError: (503, RETRY),
}
"""Status and instruction for each kind of error; the first kind that matches counts, so subclasses come first."""

PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["title", "status", "detail", "to_do"],
    "properties": {
        "title": {"type": "string", "description": "Name of the HTTP status."},
        "status": {"type": "integer", "description": "HTTP status."},
        "detail": {"type": "string", "description": "What was wrong."},
        "to_do": {"type": "string", "description": "What to do about it."},
        "wrong": {
            "type": "array",
            "items": {"type": "object"},
            "description": "Each invalid part of the request: `where` it is, and `what` is wrong.",
        },
    },
}
"""JSON schema of the body."""


def describe_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of a route's errors.

    Args:
        statuses: HTTP statuses of the route's errors, in addition to those of every route.
    """
    content = {"application/problem+json": {"schema": PROBLEM_SCHEMA}}
    all_statuses = {400, 401, 403, 408, 413, 421, 422, 429, 503, *statuses}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in sorted(all_statuses)}


def make_problem(status: int, detail: str, to_do: str, wrong: list[dict[str, str]] | None = None) -> Response:
    """Return the response for an error.

    Args:
        status: HTTP status.
        detail: what was wrong.
        to_do: what to do about it.
        wrong: each invalid part of the request.
    """
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail, "to_do": to_do}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    headers |= {"Retry-After": RETRY_AFTER_S} if status in (429, 503) else {}
    # As ASCII: the detail may quote bytes of the request that are not valid text.
    content = json.dumps(body | ({"wrong": wrong} if wrong else {})).encode()
    return Response(content, status, headers, media_type="application/problem+json")


def to_response(error: MagnetError) -> Response:
    """Return the response for an error of this project."""
    if isinstance(error, RefusedError):
        return make_problem(error.status, str(error), error.to_do)
    status, to_do = next((problem for kind, problem in PROBLEMS.items() if isinstance(error, kind)), (500, ""))
    if isinstance(error, DatabaseUnavailableError | DatabaseCorruptError):
        log.error("%s", error)  # not for clients: the driver's message names hosts and accounts
        return make_problem(status, "the queue's database is unreachable or corrupt", to_do)
    return make_problem(status, str(error), to_do or "report this error, with the service's log")


def install_handlers(app: FastAPI) -> None:
    """Make the application respond to every error with a problem."""

    async def handle_magnet_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, MagnetError)
        return to_response(error)

    async def handle_invalid_request(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        wrong = [{"where": ".".join(map(str, part["loc"])), "what": str(part["msg"])} for part in error.errors()]
        detail = "; ".join(f"{part['where']}: {part['what']}" for part in wrong[:MAX_DETAILS])
        # A body that is not JSON is malformed (400); a wrong value in valid JSON is not (422).
        malformed = any(part["type"] == "json_invalid" for part in error.errors())
        to_do = "correct these parts of the request; /openapi.json has the schema"
        return make_problem(400 if malformed else 422, detail, to_do, wrong)

    async def handle_http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = make_problem(error.status_code, str(error.detail), "see /docs for the routes of this service")
        # Such as Allow, which HTTP requires with status 405.
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response

    app.add_exception_handler(MagnetError, handle_magnet_error)
    app.add_exception_handler(RequestValidationError, handle_invalid_request)
    app.add_exception_handler(HTTPException, handle_http_error)
