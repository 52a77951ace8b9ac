"""Rows of the jobs table, within a transaction: made, read, checked, with an event for each change."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa

from service.errors import NotFoundError, UsageError
from service.queue.job import Job
from service.queue.tables import events, jobs

Within = Callable[[sa.Connection, str], None]
"""What else is written in a change's transaction; called last, with the connection and the job's id."""


class ConflictError(UsageError):
    """A job is not in a state for this, or a key was used for another request."""


class TooManyJobsError(UsageError):
    """A user has as many jobs waiting as one may have. To act: the user, later."""


def submission_id(job_id: str, number: int) -> str:
    """Under which Ray knows an attempt: it takes each only once."""
    return f"{job_id}-{number}"


def new_id(kind: str) -> str:
    """A job's id: unique, sortable by time, fit for folders and MLflow."""
    return f"{kind}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"


def new_row(
    kind: str, text: str, owner: str, priority: int, max_attempts: int, key: str | None, source: str | None
) -> dict[str, Any]:
    """A waiting job's row."""
    now_s = time.time()
    return {
        "id": new_id(kind),
        "kind": kind,
        "owner": owner,
        "request": text,
        "state": "queued",
        "priority": priority,
        "idempotency_key": key,
        "attempt": 0,
        "first_attempt": 1,
        "max_attempts": max_attempts,
        "cancel_requested": 0,
        "created_s": now_s,
        "due_s": now_s,
        "source": source,
    }


def groups_in(text: str) -> list[str]:
    """The groups that a row holds; none where it is damaged."""
    try:
        return [str(group) for group in json.loads(text)]
    except (ValueError, TypeError):
        return []


def clean(text: str, most: int = 2000) -> str:
    """Text as every database takes it: without null characters and halves of characters, and not too long."""
    return text[:most].replace("\0", "").encode("utf-8", "replace").decode()


def fail_unknown_kinds(connection: sa.Connection, kinds: Iterable[str]) -> None:
    """Fail waiting jobs of kinds that this program does not know, such as those of a newer version."""
    unknown = jobs.c.state == "queued", jobs.c.kind.not_in(list(kinds))
    for job_id, kind in connection.execute(sa.select(jobs.c.id, jobs.c.kind).where(*unknown)).all():
        reason = f"jobs of kind {kind!r} are unknown to this version of the program; install the one that made it"
        failed = {"state": "failed", "reason": reason, "ended_s": time.time()}
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(failed))
        add_event(connection, job_id, "failed", reason)


def job_row(connection: sa.Connection, job_id: str, *, for_update: bool = False) -> Job:
    """A job, its row locked if it is to be changed. Raises `NotFoundError`."""
    query = sa.select(jobs).where(jobs.c.id == job_id)
    row = connection.execute(query.with_for_update() if for_update else query).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"no job {job_id}")
    return Job(**row)


def changed_row(connection: sa.Connection, job_id: str, within: Within | None) -> Job:
    """A changed job, after what else belongs to the change was written."""
    if within is not None:
        within(connection, job_id)
    return job_row(connection, job_id)


def row_by_key(connection: sa.Connection, owner: str, key: str | None) -> Job | None:
    """The job that an idempotency key made."""
    if key is None:
        return None
    query = sa.select(jobs).where(jobs.c.owner == owner, jobs.c.idempotency_key == key)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Job(**row)


def same_request(job: Job, text: str) -> Job:
    """A job that a key made, if it was made from this request. Raises `ConflictError`."""
    if job.request != text:
        raise ConflictError(f"this Idempotency-Key made {job.id} from another request; take a new key")
    return job


def check_queued(connection: sa.Connection, owner: str, max_queued: int | None) -> None:
    """Refuse one job too many; None: any number. Raises `TooManyJobsError`."""
    query = sa.select(sa.func.count()).where(jobs.c.owner == owner, jobs.c.state == "queued")
    if max_queued is not None and (connection.scalar(query) or 0) >= max_queued:
        raise TooManyJobsError(f"{max_queued} jobs of {owner} wait already; submit more when some have ended")


def add_event(connection: sa.Connection, job_id: object, state: str, text: str) -> None:
    """Note what happened to a job."""
    row = {"job_id": job_id, "at_s": time.time(), "state": state, "text": clean(text)}
    connection.execute(events.insert().values(row))
