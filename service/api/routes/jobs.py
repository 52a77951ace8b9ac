"""Routes of jobs: submit, list, show, cancel, retry, priority, delete."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Header, Path, Query, Request, Response

from service.api import outs
from service.api.access import Caller, ForbiddenError
from service.api.answers import AttemptView, JobPage, JobSummary, JobView, ProgressView
from service.api.callers import Reader, Submitter, hidden
from service.api.denials import actor_of
from service.api.manifests import Manifests
from service.api.problems import documented
from service.api.views import PriorityChange, Submission
from service.errors import NotFoundError
from service.queue import audit, quotas
from service.queue.allowed import check_allowed
from service.queue.grants import groups_of, user_rights
from service.queue.job import Job
from service.queue.job_reader import Filter
from service.queue.job_rows import Within
from service.queue.ray_api import RayJobs
from service.queue.requests import Check, Score, Train, Tune, from_json, results_folder
from service.queue.store import JobStore
from service.queue.tables import jobs
from service.settings.service import ServiceSettings
from service.storage.rights import Rights

BIGGEST = 2**31 - 1
"""Of numbers that the database is asked for."""

JobId = Annotated[str, Path(description="as `magnet jobs` lists it")]
_JOB_ID = re.compile(r"[a-z]+-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}", re.ASCII)
OPEN_ALIAS = "challenger"
"""The alias that any submitter's training may give its model."""

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=documented(404))


def found(request: Request, caller: Caller, job_id: str) -> Job:
    """A job that the caller may see. Raises `NotFoundError`, the same for a job of another user and for none."""
    missing = NotFoundError(f"no job {job_id[:80]!r}; `magnet jobs` lists them")
    if _JOB_ID.fullmatch(job_id) is None:
        raise missing
    try:
        job = store_of(request).job(job_id)
        with hidden(request):
            caller.require_owner(job.owner, f"job {job_id}")
    except NotFoundError:
        raise missing from None
    return job


def recorded(caller: Caller, action: str, detail: str | None = None) -> Within:
    """What writes the audit log's row in the transaction of a change."""

    def record(connection: sa.Connection, what: str) -> None:
        audit.append(connection, actor_of(caller), action, what, detail=detail)

    return record


def require_alias(caller: Caller, request: Check | Train | Tune | Score) -> None:
    """Refuse a training that names its model for others to use, such as `champion`, without the scope for it.

    Raises:
        ForbiddenError: the token's scope is too narrow.
    """
    if isinstance(request, Train | Tune) and request.settings.alias != OPEN_ALIAS:
        caller.require_scope("promote", f"alias = {request.settings.alias} (any other than {OPEN_ALIAS})")


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
    require_alias(caller, body.job)
    rights = rights_of(settings, caller)
    check_allowed(body.job, rights)
    if not _submitted_before(request, caller, idempotency_key):
        manifests: Manifests = request.app.state.manifests
        manifests.require(body.job.manifest, rights)

    def within(connection: sa.Connection, job_id: str) -> None:
        recorded(caller, "job.submit", f"{body.job.kind} of {body.job.manifest}")(connection, job_id)
        outs.require_free(connection, body.job, caller.owner)  # after the audit log, which lets in one at a time

    job, new = store_of(request).add(
        body.job,
        caller.owner,
        groups=caller.groups,
        priority=body.priority,
        max_attempts=body.max_attempts,
        idempotency_key=idempotency_key,
        max_queued=quotas.effective(settings, caller.owner, caller.groups).max_queued,
        within=within,
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
    if owner not in (None, caller.owner) and not caller.may("admin"):
        raise ForbiddenError(f"jobs of {owner} are listed for administrators only; leave owner out for your own")
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
    return shown(request, store_of(request).cancel(job_id, recorded(caller, "job.cancel")))


@router.post("/{job_id}/retry", responses=documented(404, 409))
def retry(request: Request, caller: Submitter, job_id: JobId) -> JobView:
    """Queue a failed or cancelled job again; it continues where it stopped."""
    job = found(request, caller, job_id)
    most = quotas.effective(settings_of(request), job.owner, json.loads(job.groups)).max_queued
    return shown(request, store_of(request).retry(job_id, recorded(caller, "job.retry"), max_queued=most))


@router.post("/{job_id}/priority", responses=documented(404, 409))
def prioritise(request: Request, caller: Submitter, job_id: JobId, body: PriorityChange) -> JobView:
    """Change a waiting job's priority."""
    found(request, caller, job_id)
    record = recorded(caller, "job.priority", f"priority {body.priority}")
    return shown(request, store_of(request).set_priority(job_id, body.priority, record))


@router.delete("/{job_id}", status_code=202, responses=documented(404, 409))
def delete(request: Request, caller: Submitter, job_id: JobId) -> JobView:
    """Delete an ended job with its files, logs and results; the dispatcher does so within minutes."""
    found(request, caller, job_id)
    return shown(request, store_of(request).request_deletion(job_id, recorded(caller, "job.delete")))


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
    values["delete_requested"] = bool(job.delete_requested)
    return values | {"state": "cancelling" if cancelling else job.state, "progress": progress}


def _submitted_before(request: Request, caller: Caller, key: str | None) -> bool:
    """Whether this key has made a job; what that job needed may be gone by now."""
    if key is None:
        return False
    with store_of(request).database.reading() as connection:
        own = sa.select(jobs.c.seq).where(jobs.c.owner == caller.owner, jobs.c.idempotency_key == key)
        return connection.scalar(own) is not None


def _run_link(settings: ServiceSettings, job: Job) -> str | None:
    """Where a person sees the run."""
    if job.mlflow_run is None or not (settings.mlflow or "").startswith("http"):
        return job.mlflow_run
    return f"{settings.mlflow}/#/runs/{job.mlflow_run}"
