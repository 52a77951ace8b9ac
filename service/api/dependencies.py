"""Dependencies of the routes: the caller with the scope that a route needs, and the parts of the application."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends, Path, Request
from fastapi.security import HTTPBearer

from service.api.access import CALLER_KEY, HIDDEN_KEY, Caller, TokenScope
from service.api.errors import HiddenError, NoTokenError
from service.api.gate.limits import Streams
from service.api.manifests import Manifests
from service.api.tokens import Tokens
from service.errors import NotFoundError
from service.queue.arrivals import Arrivals
from service.queue.job import Job
from service.queue.ray_api import RayJobs
from service.queue.store import JobStore
from service.settings.service import ServiceSettings

MAX_INTEGER = 2**31 - 1
"""Largest integer that the database's columns hold."""

JobId = Annotated[str, Path(description="ID of the job, as `magnet jobs` lists it.")]
_JOB_ID = re.compile(r"[a-z]+-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}", re.ASCII)
# The gate checks the token; this only adds the security scheme to the OpenAPI schema.
_BEARER = HTTPBearer(auto_error=False, description="A token of this service.")


def _make_caller_dependency(scope: TokenScope) -> Callable[..., Awaitable[Caller]]:
    """Return a dependency that gives a route its caller, who must have a scope."""

    async def get_caller(request: Request, _: Annotated[object, Depends(_BEARER)] = None) -> Caller:
        caller = request.scope.get(CALLER_KEY)
        if not isinstance(caller, Caller):
            raise NoTokenError("the request has no token")
        caller.require_scope(scope)
        return caller

    return get_caller


Reader = Annotated[Caller, Depends(_make_caller_dependency("read"))]
Submitter = Annotated[Caller, Depends(_make_caller_dependency("submit"))]
Promoter = Annotated[Caller, Depends(_make_caller_dependency("promote"))]
Admin = Annotated[Caller, Depends(_make_caller_dependency("admin"))]


def get_settings(request: Request) -> ServiceSettings:
    """Return the service settings."""
    settings: ServiceSettings = request.app.state.settings
    return settings


def get_store(request: Request) -> JobStore:
    """Return the store of jobs."""
    store: JobStore = request.app.state.store
    return store


def get_tokens(request: Request) -> Tokens:
    """Return the tokens of the service."""
    tokens: Tokens = request.app.state.tokens
    return tokens


def get_ray(request: Request) -> RayJobs:
    """Return the client of Ray's Jobs API."""
    ray: RayJobs = request.app.state.ray
    return ray


def get_arrivals(request: Request) -> Arrivals:
    """Return the watches and schedules."""
    arrivals: Arrivals = request.app.state.arrivals
    return arrivals


def get_manifests(request: Request) -> Manifests:
    """Return the check of manifests."""
    manifests: Manifests = request.app.state.manifests
    return manifests


def get_streams(request: Request) -> Streams:
    """Return the count of followed streams."""
    streams: Streams = request.app.state.streams
    return streams


def find_job(request: Request, caller: Caller, job_id: str) -> Job:
    """Return a job that the caller may see.

    Raises:
        NotFoundError: there is no such job, or it belongs to another user; the message is the same for both.
    """
    missing = NotFoundError(f"no job {job_id[:80]!r}; `magnet jobs` lists them")
    # A malformed ID, such as one with a NUL byte, would be an error in the database, not a missing job.
    if _JOB_ID.fullmatch(job_id) is None:
        raise missing
    try:
        job = get_store(request).job(job_id)
        with note_hidden(request):
            caller.require_owner(job.owner, f"job {job_id}")
    except NotFoundError:
        # Without the cause, whose message differs between a missing job and another user's.
        raise missing from None
    return job


@contextmanager
def note_hidden(request: Request) -> Iterator[None]:
    """Mark the request for the audit log if the context is left because the object belongs to another user."""
    try:
        yield
    except HiddenError:
        request.scope[HIDDEN_KEY] = True
        raise
