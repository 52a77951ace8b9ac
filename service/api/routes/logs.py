"""Routes of what a job prints and of what happens to it: once, or followed until it has ended.

Following is cheap while nothing changes: the jobs table says whether there was a sign of life, and only then the object
store is asked. A client that must not miss anything asks without `follow` and continues at `X-Log-Next`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from service.api.callers import Reader
from service.api.limits import Followed
from service.api.problems import documented
from service.api.routes.jobs import BIGGEST, JobId, found, settings_of, store_of
from service.errors import NotFoundError
from service.queue.attempt_folder import attempt_folder
from service.queue.job import ENDED, Event, Job

LOOK_S = 0.5
"""Seconds between two looks at what is followed, after something changed."""
SLOWEST_LOOK_S = 2.0
"""The same after some looks at which nothing had changed."""
READ_ANYWAY_S = 15.0
"""Seconds after which a log is read though no sign of life came: the dispatcher, which notes them, may be away."""
LOG_BYTES = 1 << 20
"""Of a log that are sent in one piece."""
MEDIA = "text/plain; charset=utf-8"

_HEADERS = {
    "X-Log-Attempt": {"schema": {"type": "integer"}, "description": "the attempt whose log this is; 0: none began yet"},
    "X-Log-Next": {"schema": {"type": "integer"}, "description": "byte offset after what was sent; not if followed"},
    "X-Job-State": {"schema": {"type": "string"}, "description": "of the job, before its log was read"},
}

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], responses=documented(404))

Follow = Annotated[bool, Query(description="go on until the job has ended")]


def _holding_log(request: Request, caller: Reader, follow: Follow = False) -> Iterator[None]:
    """Hold one of the user's places until the answer has been sent. Raises `TooManyRequestsError`."""
    yield from _holding(request, caller.owner, follow)


def _holding_events(request: Request, caller: Reader, follow: Follow = True) -> Iterator[None]:
    """The same; events are followed unless the caller says otherwise."""
    yield from _holding(request, caller.owner, follow)


def _holding(request: Request, owner: str, follow: bool) -> Iterator[None]:
    followed: Followed = request.app.state.followed
    if not follow:
        yield
        return
    with followed.following(owner):
        yield


@router.get(
    "/logs",
    response_class=Response,
    dependencies=[Depends(_holding_log)],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "headers": _HEADERS}},
)
def logs(
    request: Request,
    caller: Reader,
    job_id: JobId,
    attempt: Annotated[int | None, Query(ge=1, le=BIGGEST, description="default: the newest")] = None,
    offset: Annotated[int, Query(ge=0, le=BIGGEST, description="bytes to leave out")] = 0,
    follow: Follow = False,
) -> Response:
    """What a job printed, as kept in the object store.

    Without `follow` at most a mebibyte is sent; ask again at `X-Log-Next` for what comes after. The log is complete
    once `X-Job-State` is done, failed or cancelled and nothing is sent any more.
    """
    job = found(request, caller, job_id)
    number = attempt or job.attempt
    if number > job.attempt:
        raise NotFoundError(f"job {job_id} has had {job.attempt} attempt(s), not {number}")
    known = {"X-Log-Attempt": str(number), "X-Job-State": job.state}
    if follow:
        return StreamingResponse(_follow(request, job, number, offset), media_type=MEDIA, headers=known)
    data = attempt_folder(_folder(request, job), number).log(offset, LOG_BYTES) if number else b""
    return Response(data, media_type=MEDIA, headers=known | {"X-Log-Next": str(offset + len(data))})


async def _follow(request: Request, job: Job, number: int, offset: int) -> AsyncIterator[bytes]:
    """A log's bytes until the job has ended, those of later attempts too."""
    store, folder = store_of(request), _folder(request, job)
    seen: tuple[object, ...] | None = None
    pause_s, read_s = LOOK_S, 0.0
    while True:
        number = number or job.attempt  # no attempt had started
        look = job.state, job.attempt, job.beat_s
        data = b""
        if number and (look != seen or time.monotonic() - read_s > READ_ANYWAY_S):
            data = await run_in_threadpool(_news, folder, number, offset)
            read_s = time.monotonic()
            seen = None if data else look  # there may be more than one piece
        if data:
            offset, pause_s = offset + len(data), LOOK_S
            yield data
        elif number and job.attempt > number:
            number, offset, seen = number + 1, 0, None
            yield f"--- attempt {number} ---\n".encode()
            continue
        elif job.state in ENDED or await request.is_disconnected():
            return
        else:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, SLOWEST_LOOK_S)
        job = await run_in_threadpool(store.job, job.id)


def _news(folder: str, number: int, offset: int) -> bytes:
    """What an attempt has printed since: its sign of life, which is short, says whether there is anything."""
    attempt = attempt_folder(folder, number)
    beat = attempt.beat()
    if beat is not None and beat.log_bytes <= offset:
        return b""
    return attempt.log(offset, LOG_BYTES)


def _folder(request: Request, job: Job) -> str:
    return settings_of(request).job_folder(job.owner, job.id)


def _followed(request: Request, caller: Reader, job_id: JobId) -> str:
    """The id of a job that the caller may see, looked for before the stream begins: later is too late for a 404."""
    return found(request, caller, job_id).id


@router.get("/events", response_class=EventSourceResponse, dependencies=[Depends(_holding_events)])
async def events(
    request: Request,
    job_id: Annotated[str, Depends(_followed)],
    last_event_id: Annotated[int | None, Header(ge=0, le=BIGGEST, description="go on after this one")] = None,
    follow: Follow = True,
) -> AsyncIterator[ServerSentEvent]:
    """What happens to a job, as server-sent events."""
    store, after, pause_s = store_of(request), last_event_id or 0, LOOK_S
    while True:
        job = await run_in_threadpool(store.job, job_id)
        some = await run_in_threadpool(store.events, job_id, after=after)
        for event in some:
            after, pause_s = event.seq, LOOK_S
            yield ServerSentEvent(id=str(event.seq), event=event.state, raw_data=_event_text(event))
        if some:
            continue  # there may be more than one page
        if not follow or job.state in ENDED or await request.is_disconnected():
            return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, SLOWEST_LOOK_S)


def _event_text(event: Event) -> str:
    return json.dumps({"job": event.job_id, "at_s": event.at_s, "state": event.state, "text": event.text})
