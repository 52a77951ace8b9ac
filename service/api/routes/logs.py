"""Routes of a job's log and events: read once, or followed until the job has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from service.api.dependencies import MAX_INTEGER, JobId, Reader, find_job, get_settings, get_store, get_streams
from service.api.log_stream import LOG_BYTES, stream_events, stream_log
from service.api.problems import describe_problems
from service.errors import NotFoundError
from service.queue.attempt_folder import attempt_folder

MEDIA = "text/plain; charset=utf-8"

_HEADERS = {
    "X-Log-Attempt": {
        "schema": {"type": "integer"},
        "description": "Number of the attempt whose log this is; 0: no attempt has started.",
    },
    "X-Log-Next": {
        "schema": {"type": "integer"},
        "description": "Byte offset of the next piece of the log; missing from a followed log.",
    },
    "X-Job-State": {"schema": {"type": "string"}, "description": "State of the job before its log was read."},
}

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], responses=describe_problems(404))

Follow = Annotated[bool, Query(description="Continue until the job has ended.")]


# A dependency, not a block in the route: it ends after the response has been sent, or its client has disconnected.
def _count_log_stream(request: Request, caller: Reader, follow: Follow = False) -> Iterator[None]:
    """Count a followed log until the response has been sent. Raises `TooManyRequestsError`."""
    yield from _count_stream(request, caller.owner, follow)


def _count_event_stream(request: Request, caller: Reader, follow: Follow = True) -> Iterator[None]:
    """Count followed events until the response has been sent. Raises `TooManyRequestsError`."""
    yield from _count_stream(request, caller.owner, follow)


def _count_stream(request: Request, owner: str, follow: bool) -> Iterator[None]:
    if not follow:
        yield
        return
    with get_streams(request).follow(owner):
        yield


@router.get(
    "/logs",
    response_class=Response,
    dependencies=[Depends(_count_log_stream)],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "headers": _HEADERS}},
)
def read_log(
    request: Request,
    caller: Reader,
    job_id: JobId,
    attempt: Annotated[
        int | None, Query(ge=1, le=MAX_INTEGER, description="Number of the attempt; omitted: the newest attempt.")
    ] = None,
    offset: Annotated[int, Query(ge=0, le=MAX_INTEGER, description="Number of bytes to skip.")] = 0,
    follow: Follow = False,
) -> Response:
    """The log of a job, from the object store.

    Without `follow`, the response has at most a mebibyte; continue at the offset `X-Log-Next`. The log is complete
    once `X-Job-State` is done, failed or cancelled and the response is empty.
    """
    job = find_job(request, caller, job_id)
    number = attempt or job.attempt
    if number > job.attempt:
        raise NotFoundError(f"job {job_id} has had {job.attempt} attempt(s), not {number}")
    headers = {"X-Log-Attempt": str(number), "X-Job-State": job.state}
    folder = get_settings(request).job_folder(job.owner, job.id)
    if follow:
        stream = stream_log(request, get_store(request), folder, job, number, offset)
        return StreamingResponse(stream, media_type=MEDIA, headers=headers)
    data = attempt_folder(folder, number).log(offset, LOG_BYTES) if number else b""
    return Response(data, media_type=MEDIA, headers=headers | {"X-Log-Next": str(offset + len(data))})


def _find_job_id(request: Request, caller: Reader, job_id: JobId) -> str:
    """Return the ID of a job that the caller may see; once the stream has started, a 404 is no longer possible."""
    return find_job(request, caller, job_id).id


@router.get("/events", response_class=EventSourceResponse, dependencies=[Depends(_count_event_stream)])
async def read_events(
    request: Request,
    job_id: Annotated[str, Depends(_find_job_id)],
    last_event_id: Annotated[
        int | None, Header(ge=0, le=MAX_INTEGER, description="Continue after the event with this number.")
    ] = None,
    follow: Follow = True,
) -> AsyncIterator[ServerSentEvent]:
    """The events of a job, as server-sent events."""
    async for event in stream_events(request, get_store(request), job_id, last_event_id or 0, follow=follow):
        yield event
