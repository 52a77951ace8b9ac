"""Logs and events of a job, followed until the job has ended.

Following costs little while nothing changes: the jobs table shows whether there was a heartbeat, and only then the
object store is read. A client that must not miss anything sends requests without `follow`, and continues each time at
the byte that `X-Log-Next` names.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from service.queue.attempt_folder import attempt_folder
from service.queue.job import ENDED, Event, Job
from service.queue.store import JobStore

POLL_S = 0.5
"""Seconds between two looks at a stream after something changed."""
MAX_POLL_S = 2.0
"""Seconds between two looks after several looks without a change."""
POLL_GROWTH = 1.5
"""Factor by which the pause grows after a look without a change."""
MAX_UNREAD_S = 15.0
"""Seconds after which a log is read without a heartbeat: the dispatcher, which records heartbeats, may be down."""
LOG_BYTES = 1 << 20
"""Maximum bytes of a log in one piece."""


async def stream_log(
    request: Request, store: JobStore, folder: str, job: Job, number: int, offset: int
) -> AsyncIterator[bytes]:
    """Yield a log's bytes until the job has ended, including the logs of later attempts.

    Args:
        request: the request, whose client may disconnect.
        store: the store of jobs.
        folder: the job's folder.
        job: the job.
        number: number of the attempt to start with; 0: no attempt has started.
        offset: first byte of that attempt's log.
    """
    known: tuple[object, ...] | None = None
    pause_s, read_s = POLL_S, 0.0
    while True:
        number = number or job.attempt  # the first attempt may have started since
        state = job.state, job.attempt, job.beat_s
        data = b""
        if number and (state != known or time.monotonic() - read_s > MAX_UNREAD_S):
            data = await run_in_threadpool(_read_new, folder, number, offset)
            read_s = time.monotonic()
            known = None if data else state  # there may be more than one piece
        if data:
            offset, pause_s = offset + len(data), POLL_S
            yield data
        elif number and job.attempt > number:
            number, offset, known = number + 1, 0, None
            yield f"--- attempt {number} ---\n".encode()
            continue
        elif job.state in ENDED or await request.is_disconnected():
            return
        else:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * POLL_GROWTH, MAX_POLL_S)
        job = await run_in_threadpool(store.job, job.id)


async def stream_events(
    request: Request, store: JobStore, job_id: str, after: int, *, follow: bool
) -> AsyncIterator[ServerSentEvent]:
    """Yield a job's events.

    Args:
        request: the request, whose client may disconnect.
        store: the store of jobs.
        job_id: ID of the job.
        after: number of the last event that the client has.
        follow: whether to wait for new events until the job has ended.
    """
    pause_s = POLL_S
    while True:
        job = await run_in_threadpool(store.job, job_id)
        events = await run_in_threadpool(store.events, job_id, after=after)
        for event in events:
            after, pause_s = event.seq, POLL_S
            yield ServerSentEvent(id=str(event.seq), event=event.state, raw_data=_format_event(event))
        if events:
            continue  # there may be more than one page
        # `job` was read before the events: an ended job has no later ones.
        if not follow or job.state in ENDED or await request.is_disconnected():
            return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * POLL_GROWTH, MAX_POLL_S)


def _read_new(folder: str, number: int, offset: int) -> bytes:
    """Return what an attempt has printed since `offset`."""
    attempt = attempt_folder(folder, number)
    beat = attempt.beat()
    # The heartbeat is small and states the log's length, so an unchanged log is not read.
    if beat is not None and beat.log_bytes <= offset:
        return b""
    return attempt.log(offset, LOG_BYTES)


def _format_event(event: Event) -> str:
    return json.dumps({"job": event.job_id, "at_s": event.at_s, "state": event.state, "text": event.text})
