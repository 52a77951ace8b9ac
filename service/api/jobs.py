"""Routes of jobs: submit, list, show, log, events, cancel, retry, priority."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from service.api.access import Caller, Reader, Submitter
from service.api.problems import documented
from service.api.views import (
    AttemptView,
    JobPage,
    JobSummary,
    JobView,
    PriorityChange,
    ProgressView,
    Submission,
)
from service.errors import NotFoundError
from service.queue.allowed import check_allowed
from service.queue.attempt_folder import attempt_folder
from service.queue.grants import groups_of, user_rights
from service.queue.job import ENDED, Event, Job
from service.queue.ray_api import RayJobs
from service.queue.requests import Score, from_json, results_folder
from service.queue.store import Filter, JobStore
from service.service_settings import ServiceSettings
from service.storage.rights import Rights

FOLLOW_S = 0.5
"""Seconds between two looks at a log or at events that are followed."""
LOG_BYTES = 1 << 20
"""Of a log that are sent in one piece."""
BIGGEST = 2**31 - 1
"""Of numbers that the database is asked for."""

JobId = Annotated[str, Path(pattern=r"^[a-z]+-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}$", description="as submit told it")]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=documented(404))


def found(request: Request, caller: Caller, job_id: str) -> Job:
    """A job that the caller may see. Raises `NotFoundError`."""
    job = store_of(request).job(job_id)
    caller.require_owner(job.owner, f"job {job_id}")
    return job


def store_of(request: Request) -> JobStore:
    """The app's jobs."""
    store: JobStore = request.app.state.store
    return store


def settings_of(request: Request) -> ServiceSettings:
    """The service's settings."""
    settings: ServiceSettings = request.app.state.settings
    return settings


def rights_of(settings: ServiceSettings, caller: Caller) -> Rights:
    """What a caller's jobs may name."""
    return user_rights(settings, caller.owner, groups_of(settings, caller.owner, caller.groups))


@router.post(
    "", status_code=201, responses=documented(409) | {200: {"description": "Submitted before", "model": JobView}}
)
def submit(
    request: Request,
    response: Response,
    caller: Submitter,
    body: Submission,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=200, description="The same key again: the same job, not another")
    ] = None,
) -> JobView:
    """Submit a job."""
    settings = settings_of(request)
    check_allowed(body.job, rights_of(settings, caller))
    job, new = store_of(request).add(
        body.job,
        caller.owner,
        groups=caller.groups,
        priority=body.priority,
        max_attempts=body.max_attempts,
        idempotency_key=idempotency_key,
        max_queued=settings.max_queued_per_user,
    )
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return shown(request, job)


@router.get("")
def listed(
    request: Request,
    caller: Reader,
    state: Literal["queued", "starting", "running", "done", "failed", "cancelled"] | None = None,
    kind: Literal["check", "train", "tune", "score"] | None = None,
    owner: Annotated[str | None, Query(max_length=64, pattern=r"^[!-~]+$", description="admins only")] = None,
    before: Annotated[int | None, Query(ge=1, le=BIGGEST, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> JobPage:
    """Jobs, newest first: one's own, or for admins everybody's."""
    whose = owner if caller.may("admin") else caller.owner
    page = store_of(request).page(Filter(owner=whose, state=state, kind=kind), before=before, limit=limit)
    return JobPage(jobs=[summary(job) for job in page], next=page[-1].seq if len(page) == limit else None)


@router.get("/{job_id}")
def show(request: Request, caller: Reader, job_id: JobId) -> JobView:
    """A job in full."""
    return shown(request, found(request, caller, job_id))


@router.post("/{job_id}/cancel")
def cancel(request: Request, caller: Submitter, job_id: JobId) -> JobView:
    """Cancel a job; one that has ended stays as it is."""
    found(request, caller, job_id)
    return shown(request, store_of(request).cancel(job_id))


@router.post("/{job_id}/retry", responses=documented(404, 409))
def retry(request: Request, caller: Submitter, job_id: JobId) -> JobView:
    """Queue a failed or cancelled job again; it goes on where it stopped."""
    found(request, caller, job_id)
    return shown(request, store_of(request).retry(job_id))


@router.post("/{job_id}/priority", responses=documented(404, 409))
def prioritise(request: Request, caller: Submitter, job_id: JobId, body: PriorityChange) -> JobView:
    """Change a waiting job's priority."""
    found(request, caller, job_id)
    return shown(request, store_of(request).set_priority(job_id, body.priority))


@router.get(
    "/{job_id}/logs",
    response_class=StreamingResponse,
    responses=documented(404) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def logs(
    request: Request,
    caller: Reader,
    job_id: JobId,
    attempt: Annotated[int | None, Query(ge=1, le=BIGGEST, description="default: the newest")] = None,
    offset: Annotated[int, Query(ge=0, le=BIGGEST, description="bytes to leave out")] = 0,
    follow: Annotated[bool, Query(description="go on until the job has ended")] = False,
) -> Response:
    """What a job printed, as kept in the object store."""
    job = found(request, caller, job_id)
    number = attempt or job.attempt
    if number > job.attempt:
        raise NotFoundError(f"job {job_id} has had {job.attempt} attempt(s), not {number}")
    if follow:
        return StreamingResponse(_log(request, job_id, number, offset, follow), media_type="text/plain; charset=utf-8")
    folder = settings_of(request).job_folder(job.owner, job_id)
    data = attempt_folder(folder, number).log(offset, LOG_BYTES) if number else b""
    headers = {"X-Log-Attempt": str(number), "X-Log-Next": str(offset + len(data)), "X-Job-State": job.state}
    return Response(data, media_type="text/plain; charset=utf-8", headers=headers)


async def _log(request: Request, job_id: str, number: int, offset: int, follow: bool) -> AsyncIterator[bytes]:
    """A log's bytes; followed, those of later attempts too."""
    store, settings = store_of(request), settings_of(request)
    folder, fixed = settings.job_folder(store.job(job_id).owner, job_id), not follow
    while True:
        job = await run_in_threadpool(store.job, job_id)
        number = number or job.attempt  # it has not begun
        data = b""
        if number:
            data = await run_in_threadpool(attempt_folder(folder, number).log, offset, LOG_BYTES)
        if data:
            offset += len(data)
            yield data
            continue
        if not fixed and number and job.attempt > number:
            number, offset = number + 1, 0
            yield f"--- attempt {number} ---\n".encode()
            continue
        if fixed or job.state in ENDED or await request.is_disconnected():
            return
        await asyncio.sleep(FOLLOW_S)


def _followed(request: Request, caller: Reader, job_id: JobId) -> str:
    """The id of a job that the caller may see, looked for before the stream begins: later is too late for a 404."""
    return found(request, caller, job_id).id


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def events(
    request: Request,
    job_id: Annotated[str, Depends(_followed)],
    last_event_id: Annotated[int | None, Header(ge=0, le=BIGGEST, description="go on after this one")] = None,
    follow: Annotated[bool, Query(description="go on until the job has ended")] = True,
) -> AsyncIterator[ServerSentEvent]:
    """What happens to a job, as server-sent events."""
    store, after = store_of(request), last_event_id or 0
    while True:
        job = await run_in_threadpool(store.job, job_id)
        for event in await run_in_threadpool(store.events, job_id, after=after):
            after = event.seq
            yield ServerSentEvent(id=str(event.seq), event=event.state, raw_data=_event_text(event))
        if not follow or job.state in ENDED or await request.is_disconnected():
            return
        await asyncio.sleep(FOLLOW_S)


def _event_text(event: Event) -> str:
    return json.dumps({"job": event.job_id, "at_s": event.at_s, "state": event.state, "text": event.text})


def summary(job: Job) -> JobSummary:
    """A job as lists have it."""
    return JobSummary.model_validate(_common(job))


def shown(request: Request, job: Job) -> JobView:
    """A job in full."""
    settings, ray = settings_of(request), ray_of(request)
    asked = from_json(job.request)
    attempts = [
        AttemptView(
            number=one.number,
            state=one.state,
            reason=one.reason,
            exit_code=one.exit_code,
            started_s=one.started_s,
            ended_s=one.ended_s,
            ray_job=ray.link(one.submission_id),
        )
        for one in store_of(request).attempts(job.id)
    ]
    results = results_folder(asked, job.owner, job.id, settings) if isinstance(asked, Score) else None
    known = {"request": json.loads(job.request), "attempts": attempts, "results": results}
    return JobView.model_validate(_common(job) | known | {"mlflow_run": _run_link(settings, job)})


def ray_of(request: Request) -> RayJobs:
    """The cluster's Jobs API."""
    ray: RayJobs = request.app.state.ray
    return ray


def _common(job: Job) -> dict[str, object]:
    cancelling = bool(job.cancel_requested) and job.state in ("starting", "running")
    values = {name: getattr(job, name) for name in JobSummary.model_fields if name not in ("state", "progress")}
    progress = ProgressView(activity=job.activity, done=job.done, total=job.total, eta_s=job.eta_s)
    return values | {"state": "cancelling" if cancelling else job.state, "progress": progress}


def _run_link(settings: ServiceSettings, job: Job) -> str | None:
    """Where a person sees the run."""
    if job.mlflow_run is None or not (settings.mlflow or "").startswith("http"):
        return job.mlflow_run
    return f"{settings.mlflow}/#/runs/{job.mlflow_run}"
