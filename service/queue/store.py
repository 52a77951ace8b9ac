"""The jobs table: what is asked for, what becomes of it. The only place that changes a job's state.

Every change is one transaction that names the state it starts from, so that doing it twice does nothing, whoever
crashed in between.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from service.errors import NotFoundError, UsageError
from service.queue import fair
from service.queue.job import ACTIVE, ENDED, HIGHEST, LOWEST, Attempt, Event, Job, Progress
from service.queue.requests import Check, Score, Train, Tune, to_json
from service.queue.tables import Database, attempts, events, jobs

Within = Callable[[sa.Connection, str], None]
"""What else is written in a change's transaction; called last, with the connection and the job's id."""
MOST_WAITING = 5000
"""Jobs that are weighed against each other when one may start."""


class ConflictError(UsageError):
    """A job is not in a state for this, or a key was used for another request."""


class TooManyJobsError(UsageError):
    """A user has as many jobs waiting as one may have. To act: the user, later."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may run at once."""

    per_kind: Mapping[str, int]
    per_user: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs are listed; None: all."""

    owner: str | None = None
    state: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds between attempts: the first wait, doubled each time up to the longest, shortened at random by up to half
    so that what failed together does not come back together."""

    first_s: float
    most_s: float

    def wait_s(self, num_failed: int) -> float:
        """After so many failed attempts."""
        longest = min(self.first_s * 2.0 ** min(num_failed - 1, 30), self.most_s)
        return longest * random.uniform(0.5, 1)


class JobStore:
    """Jobs in a database.

    Args:
        database: with the queue's tables.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    # ------------------------------------------------------------------------------------------------------ asked for

    def add(
        self,
        request: Check | Train | Tune | Score,
        owner: str,
        *,
        groups: Collection[str] = (),
        priority: int = 0,
        max_attempts: int = 5,
        idempotency_key: str | None = None,
        source: str | None = None,
        max_queued: int | None = None,
        within: Within | None = None,
    ) -> tuple[Job, bool]:
        """A new job, or the one that the same key made before, and whether it is new.

        `within` is called with a new job's id in the transaction that makes it.

        Raises:
            ConflictError: the key was used for another request.
            TooManyJobsError: the owner has `max_queued` jobs waiting.
        """
        text = to_json(request)
        row = _new_row(request.kind, text, owner, priority, max_attempts, idempotency_key, source)
        row["groups"] = json.dumps(sorted(groups))
        try:
            with self.database.writing() as connection:
                if earlier := _by_key(connection, owner, idempotency_key):
                    return _same(earlier, text), False
                _check_queued(connection, owner, max_queued)
                connection.execute(jobs.insert().values(row))
                _note(connection, row["id"], "queued", "submitted")
                if within is not None:
                    within(connection, row["id"])
                return _job(connection, row["id"]), True
        except IntegrityError:  # Postgres lets two in at once: the other one won
            with self.database.reading() as connection:
                if earlier := _by_key(connection, owner, idempotency_key):
                    return _same(earlier, text), False
            raise

    def cancel(self, job_id: str, within: Within | None = None) -> Job:
        """Cancel a job: a waiting one at once, a running one by its dispatcher within seconds; an ended one stays.

        Raises:
            NotFoundError: no such job.
        """
        with self.database.writing() as connection:
            ended = {"state": "cancelled", "reason": "cancelled before it began", "ended_s": time.time()}
            waiting = jobs.update().where(jobs.c.id == job_id, jobs.c.state == "queued")
            if connection.execute(waiting.values(ended | {"cancel_requested": 1})).rowcount:
                _note(connection, job_id, "cancelled", "cancelled while it waited")
            else:
                active = jobs.c.id == job_id, jobs.c.state.in_(ACTIVE), jobs.c.cancel_requested == 0
                if connection.execute(jobs.update().where(*active).values(cancel_requested=1)).rowcount:
                    _note(connection, job_id, _job(connection, job_id).state, "cancel requested")
            return _changed(connection, job_id, within)

    def request_deletion(self, job_id: str, within: Within | None = None) -> Job:
        """Mark an ended job for deletion, with its files, logs and results.

        Raises:
            ConflictError: the job has not ended.
        """
        with self.database.writing() as connection:
            ended = jobs.c.id == job_id, jobs.c.state.in_(ENDED)
            if not connection.execute(jobs.update().where(*ended).values(delete_requested=1)).rowcount:
                raise ConflictError(
                    f"job {job_id} is {_job(connection, job_id).state}; cancel it first, then delete it"
                )
            return _changed(connection, job_id, within)

    def retry(self, job_id: str, within: Within | None = None) -> Job:
        """Queue an ended job again; its attempts go on counting, and continue the same run.

        Raises:
            ConflictError: the job has not ended.
        """
        with self.database.writing() as connection:
            job = _job(connection, job_id)
            if job.state not in ("failed", "cancelled"):
                raise ConflictError(f"job {job_id} is {job.state}; only a failed or cancelled one is retried")
            if job.delete_requested:
                raise ConflictError(f"job {job_id} is being deleted; submit it again instead")
            again = {"state": "queued", "reason": None, "cancel_requested": 0, "due_s": time.time(), "ended_s": None}
            again |= {"first_attempt": job.attempt + 1}
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(again))
            _note(connection, job_id, "queued", "retried by hand")
            return _changed(connection, job_id, within)

    def set_priority(self, job_id: str, priority: int, within: Within | None = None) -> Job:
        """Change a waiting job's place among its owner's.

        Raises:
            ConflictError: it does not wait.
        """
        if not LOWEST <= priority <= HIGHEST:
            raise UsageError(f"priority {priority}: must be {LOWEST} to {HIGHEST}")
        with self.database.writing() as connection:
            waiting = jobs.c.id == job_id, jobs.c.state == "queued"
            if not connection.execute(jobs.update().where(*waiting).values(priority=priority)).rowcount:
                raise ConflictError(f"job {job_id} is {_job(connection, job_id).state}, not queued")
            _note(connection, job_id, "queued", f"priority {priority}")
            return _changed(connection, job_id, within)

    # ----------------------------------------------------------------------------------------------------- looked at

    def job(self, job_id: str) -> Job:
        """A job by its id. Raises `NotFoundError`."""
        with self.database.reading() as connection:
            return _job(connection, job_id)

    def page(self, which: Filter, *, before: int | None = None, limit: int = 50) -> list[Job]:
        """Jobs, newest first.

        Args:
            which: the filter.
            before: only jobs with a lower `seq`: the last one of the page before.
            limit: how many at most.
        """
        query = sa.select(jobs).order_by(jobs.c.seq.desc()).limit(limit)
        for column, value in ((jobs.c.owner, which.owner), (jobs.c.state, which.state), (jobs.c.kind, which.kind)):
            query = query if value is None else query.where(column == value)
        query = query if before is None else query.where(jobs.c.seq < before)
        with self.database.reading() as connection:
            return [Job(**row) for row in connection.execute(query).mappings()]

    def attempts(self, job_id: str) -> list[Attempt]:
        """A job's attempts, first to last."""
        query = sa.select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
        with self.database.reading() as connection:
            return [Attempt(**row) for row in connection.execute(query).mappings()]

    def events(self, job_id: str, *, after: int = 0, limit: int = 500) -> list[Event]:
        """What happened to a job after the event `after`."""
        query = sa.select(events).where(events.c.job_id == job_id, events.c.seq > after)
        with self.database.reading() as connection:
            return [Event(**row) for row in connection.execute(query.order_by(events.c.seq).limit(limit)).mappings()]

    def active(self) -> list[Job]:
        """Jobs with an attempt on its way."""
        with self.database.reading() as connection:
            query = sa.select(jobs).where(jobs.c.state.in_(ACTIVE)).order_by(jobs.c.seq)
            return [Job(**row) for row in connection.execute(query).mappings()]

    def counts(self) -> dict[tuple[str, str], int]:
        """Jobs by kind and state."""
        query = sa.select(jobs.c.kind, jobs.c.state, sa.func.count()).group_by(jobs.c.kind, jobs.c.state)
        with self.database.reading() as connection:
            return {(kind, state): count for kind, state, count in connection.execute(query)}

    # -------------------------------------------------------------------------------------------- by the dispatcher

    def admit(self, limits: Limits) -> list[Job]:
        """Begin the next attempt of as many waiting jobs as the limits let in."""
        now_s = time.time()
        with self.database.writing() as connection:
            columns = [jobs.c[name] for name in ("id", "kind", "owner", "priority", "created_s")]
            due = sa.select(*columns).where(jobs.c.state == "queued", jobs.c.due_s <= now_s)
            waiting = [fair.Waiting(*row) for row in connection.execute(due.order_by(jobs.c.seq).limit(MOST_WAITING))]
            if not waiting:
                return []
            active = connection.execute(sa.select(jobs.c.kind, jobs.c.owner).where(jobs.c.state.in_(ACTIVE)))
            running = [(kind, owner) for kind, owner in active]
            starts = connection.execute(sa.select(jobs.c.owner, sa.func.max(jobs.c.started_s)).group_by(jobs.c.owner))
            last_start_s = {owner: at_s for owner, at_s in starts if at_s is not None}
            next_ones = fair.chosen(
                waiting, running, last_start_s, per_kind=limits.per_kind, per_user=limits.per_user, now_s=now_s
            )
            return [self._begin(connection, one.id, now_s) for one in next_ones]

    @staticmethod
    def _begin(connection: sa.Connection, job_id: str, now_s: float) -> Job:
        number = _job(connection, job_id).attempt + 1
        begun = {"state": "starting", "attempt": number, "started_s": now_s, "beat_s": None}
        begun |= Progress(activity="starting").known()
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(begun))
        row = {"job_id": job_id, "number": number, "submission_id": submission_id(job_id, number)}
        connection.execute(attempts.insert().values(row | {"state": "starting", "started_s": now_s}))
        _note(connection, job_id, "starting", f"attempt {number}")
        return _job(connection, job_id)

    def running(self, job_id: str, number: int) -> None:
        """Ray has taken the attempt."""
        with self.database.writing() as connection:
            own = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state == "starting"
            running = {"state": "running"} | Progress(activity="starting").known()
            if connection.execute(jobs.update().where(*own).values(running)).rowcount:
                mine = attempts.c.job_id == job_id, attempts.c.number == number
                connection.execute(attempts.update().where(*mine).values(state="running"))
                _note(connection, job_id, "running", f"attempt {number} is with Ray")

    def beat(self, job_id: str, number: int, progress: Progress) -> None:
        """A sign of life of the attempt, and how far it is."""
        values = progress.known() | {"beat_s": time.time()}
        with self.database.writing() as connection:
            own = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state.in_(ACTIVE)
            connection.execute(jobs.update().where(*own).values(values))

    def waiting(self, job_id: str, number: int, why: str) -> None:
        """The attempt cannot be handed to Ray yet."""
        with self.database.writing() as connection:
            own = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state == "starting"
            connection.execute(jobs.update().where(*own).values(Progress(activity=why[:500]).known()))
            _note(connection, job_id, _job(connection, job_id).state, why)

    def end(self, job_id: str, number: int, *, state: str, reason: str | None, exit_code: int | None) -> None:
        """The attempt and its job have ended."""
        now_s = time.time()
        self._settle(job_id, number, state, {"state": state, "reason": reason, "ended_s": now_s}, reason, exit_code)

    def again(self, job_id: str, number: int, *, reason: str, exit_code: int | None, wait_s: float) -> None:
        """The attempt failed; the job waits for another one."""
        values = {"state": "queued", "reason": reason, "due_s": time.time() + wait_s}
        self._settle(job_id, number, "failed", values, f"{reason}; next attempt in {wait_s:.0f} s", exit_code)

    def _settle(
        self,
        job_id: str,
        number: int,
        attempt_state: str,
        values: Mapping[str, object],
        text: str | None,
        exit_code: int | None,
    ) -> None:
        with self.database.writing() as connection:
            own = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state.in_(ACTIVE)
            if not connection.execute(jobs.update().where(*own).values(**values, eta_s=None)).rowcount:
                return  # settled before a crash
            over = {"state": attempt_state, "reason": text, "exit_code": exit_code, "ended_s": time.time()}
            mine = attempts.c.job_id == job_id, attempts.c.number == number
            connection.execute(attempts.update().where(*mine).values(over))
            _note(connection, job_id, str(values["state"]), text or f"attempt {number} {attempt_state}")

    def ended_before(self, before_s: float, *, limit: int) -> list[Job]:
        """Jobs that ended before a time, the oldest first."""
        query = sa.select(jobs).where(*_long_ended(before_s)).order_by(jobs.c.ended_s).limit(limit)
        with self.database.reading() as connection:
            return [Job(**row) for row in connection.execute(query).mappings()]

    def forget(self, job_id: str, before_s: float) -> None:
        """Remove a job's rows, unless it was queued again since it was found to have ended before this time."""
        with self.database.writing() as connection:
            # The job's row is locked by the first statement, and goes last: the others name it.
            own = sa.select(jobs.c.id).where(jobs.c.id == job_id, *_long_ended(before_s)).with_for_update()
            if connection.scalar(own) is not None:
                connection.execute(events.delete().where(events.c.job_id == job_id))
                connection.execute(attempts.delete().where(attempts.c.job_id == job_id))
                connection.execute(jobs.delete().where(jobs.c.id == job_id))


def _long_ended(before_s: float) -> tuple[sa.ColumnElement[bool], ...]:
    return jobs.c.state.in_(ENDED), jobs.c.ended_s < before_s


def submission_id(job_id: str, number: int) -> str:
    """Under which Ray knows an attempt: it takes each only once."""
    return f"{job_id}-{number}"


def new_id(kind: str) -> str:
    """A job's id: unique, sortable by time, fit for folders and MLflow."""
    return f"{kind}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"


def _new_row(
    kind: str, text: str, owner: str, priority: int, max_attempts: int, key: str | None, source: str | None
) -> dict[str, Any]:
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


def _job(connection: sa.Connection, job_id: str) -> Job:
    row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"no job {job_id}")
    return Job(**row)


def _changed(connection: sa.Connection, job_id: str, within: Within | None) -> Job:
    if within is not None:
        within(connection, job_id)
    return _job(connection, job_id)


def _by_key(connection: sa.Connection, owner: str, key: str | None) -> Job | None:
    if key is None:
        return None
    query = sa.select(jobs).where(jobs.c.owner == owner, jobs.c.idempotency_key == key)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Job(**row)


def _same(job: Job, text: str) -> Job:
    if job.request != text:
        raise ConflictError(f"this Idempotency-Key made {job.id} from another request; take a new key")
    return job


def _check_queued(connection: sa.Connection, owner: str, max_queued: int | None) -> None:
    query = sa.select(sa.func.count()).where(jobs.c.owner == owner, jobs.c.state == "queued")
    if max_queued is not None and (connection.scalar(query) or 0) >= max_queued:
        raise TooManyJobsError(f"{max_queued} jobs of {owner} wait already; submit more when some have ended")


def _note(connection: sa.Connection, job_id: object, state: str, text: str) -> None:
    row = {"job_id": job_id, "at_s": time.time(), "state": state, "text": text[:2000]}
    connection.execute(events.insert().values(row))
