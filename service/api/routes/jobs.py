"""Routes of jobs: submit, list, show, cancel, retry, change the priority, delete."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response

from service.api.audit_records import make_recorder
from service.api.dependencies import (
    MAX_INTEGER,
    JobId,
    Reader,
    Submitter,
    find_job,
    get_manifests,
    get_ray,
    get_settings,
    get_store,
)
from service.api.errors import ForbiddenError
from service.api.job_views import describe_job, summarise_job
from service.api.problems import describe_problems
from service.api.request_bodies import PriorityChange, Submission
from service.api.response_bodies import JobPage, JobView
from service.api.submissions import submit_job
from service.queue import quotas
from service.queue.job import Job
from service.queue.job_reader import Filter

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=describe_problems(404))

SUBMIT_RESPONSES = describe_problems(409) | {
    200: {"description": "The key was used before: the job that it created", "model": JobView}
}


@router.post("", status_code=201, responses=SUBMIT_RESPONSES)
def submit(
    request: Request,
    response: Response,
    caller: Submitter,
    body: Submission,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=200, description="A repeated key returns the first job, and creates no other."),
    ] = None,
) -> JobView:
    """Submit a job."""
    store, settings = get_store(request), get_settings(request)
    job, is_new = submit_job(store, settings, get_manifests(request), caller, body, idempotency_key)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return _describe(request, job)


@router.get("")
def list_jobs(
    request: Request,
    caller: Reader,
    state: Annotated[
        Literal["queued", "starting", "running", "done", "failed", "cancelled"] | None,
        Query(description="Only jobs in this state."),
    ] = None,
    kind: Annotated[
        Literal["check", "train", "tune", "score"] | None, Query(description="Only jobs of this kind.")
    ] = None,
    owner: Annotated[
        str | None, Query(max_length=64, pattern=r"^[!-~]+$", description="Only jobs of this user; for administrators.")
    ] = None,
    before: Annotated[
        int | None, Query(ge=1, le=MAX_INTEGER, description="Value of `next` in the previous page.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="Maximum number of jobs.")] = 50,
) -> JobPage:
    """The caller's jobs, newest first; for administrators, the jobs of all users."""
    if owner not in (None, caller.owner) and not caller.has_scope("admin"):
        raise ForbiddenError(f"only administrators may list the jobs of {owner}; omit owner to list your own")
    visible_owner = owner if caller.has_scope("admin") else caller.owner
    page = get_store(request).page(Filter(owner=visible_owner, state=state, kind=kind), before=before, limit=limit)
    # A full page may be the last one; then the next page is empty.
    return JobPage(jobs=[summarise_job(job) for job in page], next=page[-1].seq if len(page) == limit else None)


@router.get("/{job_id}")
def show_job(request: Request, caller: Reader, job_id: JobId) -> JobView:
    """A job with its request, attempts and links."""
    return _describe(request, find_job(request, caller, job_id))


@router.post("/{job_id}/cancel")
def cancel(request: Request, caller: Submitter, job_id: JobId) -> JobView:
    """Cancel a job. A job that has ended stays as it is."""
    # Raises 404 for another user's job before anything changes; so do the routes below.
    find_job(request, caller, job_id)
    return _describe(request, get_store(request).cancel(job_id, make_recorder(caller, "job.cancel")))


@router.post("/{job_id}/retry", responses=describe_problems(404, 409))
def retry(request: Request, caller: Submitter, job_id: JobId) -> JobView:
    """Queue a failed or cancelled job again. It continues where it stopped."""
    job = find_job(request, caller, job_id)
    # The job counts against its owner's quota, also when an administrator retries it.
    max_queued = quotas.effective_limits(get_settings(request), job.owner, json.loads(job.groups)).max_queued
    record = make_recorder(caller, "job.retry")
    return _describe(request, get_store(request).retry(job_id, record, max_queued=max_queued))


@router.post("/{job_id}/priority", responses=describe_problems(404, 409))
def change_priority(request: Request, caller: Submitter, job_id: JobId, body: PriorityChange) -> JobView:
    """Change the priority of a queued job."""
    find_job(request, caller, job_id)
    record = make_recorder(caller, "job.priority", f"priority {body.priority}")
    return _describe(request, get_store(request).set_priority(job_id, body.priority, record))


@router.delete("/{job_id}", status_code=202, responses=describe_problems(404, 409))
def delete(request: Request, caller: Submitter, job_id: JobId) -> JobView:
    """Delete a job that has ended, with its files, logs and results. The dispatcher does so within minutes."""
    find_job(request, caller, job_id)
    return _describe(request, get_store(request).request_deletion(job_id, make_recorder(caller, "job.delete")))


def _describe(request: Request, job: Job) -> JobView:
    return describe_job(job, get_store(request), get_settings(request), get_ray(request))
