"""Reads, checks and changes rows of the jobs table within a transaction, with an event for each change."""

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
"""Writes further rows in the transaction of a change; called last, with the connection and the job's id."""


class ConflictError(UsageError):
    """A job's state does not allow the change, or a key was used for another request. To act: the user."""


class TooManyJobsError(UsageError):
    """A user has as many waiting jobs, watches or schedules as the quota allows. To act: the user, later."""


def submission_id(job_id: str, number: int) -> str:
    """Return the id under which Ray knows an attempt; Ray takes each id only once."""
    return f"{job_id}-{number}"


def new_id(kind: str) -> str:
    """Return a new id of a job: unique, sortable by time, valid in names of folders and in MLflow."""
    return f"{kind}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"


def new_row(
    kind: str, text: str, owner: str, priority: int, max_attempts: int, key: str | None, source: str | None
) -> dict[str, Any]:
    """Return the row of a new job.

    Args:
        kind: of the job.
        text: the request in JSON.
        owner: the user.
        priority: among the jobs of this user.
        max_attempts: bound of the number of attempts.
        key: idempotency key of the submission.
        source: id of the watch or schedule that submits the job.
    """
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
    """Return the groups of a row; none if the row is corrupt: a user without groups has the fewest rights."""
    try:
        return [str(group) for group in json.loads(text)]
    except (ValueError, TypeError):
        return []


def clean(text: str, most: int = 2000) -> str:
    """Return text as every database takes it: without null characters and lone surrogates, and cut."""
    return text[:most].replace("\0", "").encode("utf-8", "replace").decode()


def fail_unknown_kinds(connection: sa.Connection, kinds: Iterable[str]) -> None:
    """Fail the waiting jobs of kinds that this program does not know, such as those of a newer version."""
    # Without this they would wait for ever, and `select_jobs` has no limit for their kind.
    unknown = jobs.c.state == "queued", jobs.c.kind.not_in(list(kinds))
    for job_id, kind in connection.execute(sa.select(jobs.c.id, jobs.c.kind).where(*unknown)).all():
        reason = (
            f"jobs of kind {kind!r} are unknown to this version of the program; install the version that submitted it"
        )
        failed = {"state": "failed", "reason": reason, "ended_s": time.time()}
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(failed))
        add_event(connection, job_id, "failed", reason)


def job_row(connection: sa.Connection, job_id: str, *, for_update: bool = False) -> Job:
    """Return a job.

    Args:
        connection: in a transaction.
        job_id: the job.
        for_update: whether to lock the row until the transaction ends.

    Raises:
        NotFoundError: there is no such job.
    """
    query = sa.select(jobs).where(jobs.c.id == job_id)
    row = connection.execute(query.with_for_update() if for_update else query).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"no job {job_id}")
    return Job(**row)


def changed_row(connection: sa.Connection, job_id: str, within: Within | None) -> Job:
    """Call `within`, then return the job as it is after the change."""
    if within is not None:
        within(connection, job_id)
    return job_row(connection, job_id)


def row_by_key(connection: sa.Connection, owner: str, key: str | None) -> Job | None:
    """Return the job that was submitted with an idempotency key; None if there is none."""
    if key is None:
        return None
    query = sa.select(jobs).where(jobs.c.owner == owner, jobs.c.idempotency_key == key)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Job(**row)


def require_same_request(job: Job, text: str) -> Job:
    """Return a job that was submitted with the same key, if its request is the same.

    Args:
        job: the earlier job.
        text: the new request in JSON.

    Raises:
        ConflictError: the requests differ.
    """
    if job.request != text:
        raise ConflictError(f"this Idempotency-Key was used for {job.id} with another request; use a new key")
    return job


def check_queued(connection: sa.Connection, owner: str, max_queued: int | None) -> None:
    """Refuse a further job of a user who has as many waiting jobs as allowed.

    Args:
        connection: in a transaction.
        owner: the user.
        max_queued: bound of the number of waiting jobs; None: unlimited.

    Raises:
        TooManyJobsError: the user has `max_queued` waiting jobs.
    """
    query = sa.select(sa.func.count()).where(jobs.c.owner == owner, jobs.c.state == "queued")
    if max_queued is not None and (connection.scalar(query) or 0) >= max_queued:
        raise TooManyJobsError(
            f"{max_queued} jobs of {owner} wait already, the most allowed; submit more when some have ended"
        )


def add_event(connection: sa.Connection, job_id: object, state: str, text: str) -> None:
    """Record what happened to a job."""
    row = {"job_id": job_id, "at_s": time.time(), "state": state, "text": clean(text)}
    connection.execute(events.insert().values(row))
