"""The jobs table: what is asked for, what becomes of it. The only place that changes a job's state.

Every change is one transaction that names the state it starts from, so that doing it twice does nothing, whoever
crashed in between.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from service.errors import UsageError
from service.progress.record import Progress
from service.queue import scheduling
from service.queue.job import ACTIVE, ENDED, HIGHEST, LOWEST, Attempt, Event, Job
from service.queue.job_rows import (
    ConflictError,
    Within,
    add_event,
    changed_row,
    check_queued,
    clean,
    fail_unknown_kinds,
    groups_in,
    job_row,
    new_row,
    row_by_key,
    same_request,
    submission_id,
)
from service.queue.requests import Check, Score, Train, Tune, to_json
from service.queue.tables import Database, attempts, events, jobs, lock

MOST_WAITING = 5000
"""Jobs that are weighed against each other when one may start."""
BY_USER, EXPIRED = 1, 2
"""Of `delete_requested`: a user deletes the job and all its files; `keep_days` have passed, and its results stay."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may run at once."""

    per_kind: Mapping[str, int]
    per_user: int
    """Of each user, where `of_user` is not given."""
    of_user: Callable[[str, Collection[str]], int] | None = None
    """Of a user with groups."""

    def by_user(self, groups: Mapping[str, Collection[str]]) -> dict[str, int]:
        """The limit of each user.

        Args:
            groups: of each user.
        """
        return {owner: self.of_user(owner, g) if self.of_user else self.per_user for owner, g in groups.items()}


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
        fence: called at the beginning of each transaction of a dispatcher; raises where another one has taken over.
    """

    def __init__(self, database: Database, fence: Callable[[sa.Connection], None] | None = None) -> None:
        self.database, self.fence = database, fence

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction; one of a dispatcher that is no longer the one at work is refused."""
        with self.database.writing() as connection:
            if self.fence is not None:
                self.fence(connection)
            yield connection

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
        row = new_row(request.kind, text, owner, priority, max_attempts, idempotency_key, source)
        row["groups"] = json.dumps(sorted(groups))
        try:
            with self.writing() as connection:
                if earlier := row_by_key(connection, owner, idempotency_key):
                    return same_request(earlier, text), False
                lock(connection, f"jobs of {owner}")  # two at once must not both be the last that the quota allows
                check_queued(connection, owner, max_queued)
                connection.execute(jobs.insert().values(row))
                add_event(connection, row["id"], "queued", "submitted")
                if within is not None:
                    within(connection, row["id"])
                return job_row(connection, row["id"]), True
        except IntegrityError:  # Postgres lets two in at once: the other one won
            with self.database.reading() as connection:
                if earlier := row_by_key(connection, owner, idempotency_key):
                    return same_request(earlier, text), False
            raise

    def cancel(self, job_id: str, within: Within | None = None) -> Job:
        """Cancel a job: a waiting one at once, a running one by its dispatcher within seconds; an ended one stays.

        Raises:
            NotFoundError: no such job.
        """
        with self.writing() as connection:
            ended = {"state": "cancelled", "reason": "cancelled before it began", "ended_s": time.time()}
            waiting = jobs.update().where(jobs.c.id == job_id, jobs.c.state == "queued")
            if connection.execute(waiting.values(ended | {"cancel_requested": 1})).rowcount:
                add_event(connection, job_id, "cancelled", "cancelled while it waited")
            else:
                active = jobs.c.id == job_id, jobs.c.state.in_(ACTIVE), jobs.c.cancel_requested == 0
                if connection.execute(jobs.update().where(*active).values(cancel_requested=1)).rowcount:
                    add_event(connection, job_id, job_row(connection, job_id).state, "cancel requested")
            return changed_row(connection, job_id, within)

    def request_deletion(self, job_id: str, within: Within | None = None) -> Job:
        """Mark an ended job for deletion, with its files, logs and results; the dispatcher removes them.

        Raises:
            NotFoundError: no such job.
            ConflictError: the job has not ended.
        """
        with self.writing() as connection:
            ended = jobs.c.id == job_id, jobs.c.state.in_(ENDED)
            if not connection.execute(jobs.update().where(*ended).values(delete_requested=BY_USER)).rowcount:
                raise ConflictError(
                    f"job {job_id} is {job_row(connection, job_id).state}; cancel it first, then delete it"
                )
            return changed_row(connection, job_id, within)

    def retry(self, job_id: str, within: Within | None = None, *, max_queued: int | None = None) -> Job:
        """Queue an ended job again; its attempts go on counting, and continue the same run.

        Raises:
            ConflictError: the job has not ended, or is being deleted.
            TooManyJobsError: the owner has `max_queued` jobs waiting.
        """
        with self.writing() as connection:
            job = job_row(connection, job_id, for_update=True)
            if job.delete_requested:
                raise ConflictError(f"job {job_id} is being deleted; submit a new one")
            if job.state not in ("failed", "cancelled"):
                raise ConflictError(f"job {job_id} is {job.state}; only a failed or cancelled one is retried")
            lock(connection, f"jobs of {job.owner}")
            check_queued(connection, job.owner, max_queued)
            again = {"state": "queued", "reason": None, "cancel_requested": 0, "due_s": time.time(), "ended_s": None}
            again |= {"first_attempt": job.attempt + 1}
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(again))
            add_event(connection, job_id, "queued", "retried by hand")
            return changed_row(connection, job_id, within)

    def set_priority(self, job_id: str, priority: int, within: Within | None = None) -> Job:
        """Change a waiting job's place among its owner's.

        Raises:
            ConflictError: it does not wait.
        """
        if not LOWEST <= priority <= HIGHEST:
            raise UsageError(f"priority {priority}: must be {LOWEST} to {HIGHEST}")
        with self.writing() as connection:
            waiting = jobs.c.id == job_id, jobs.c.state == "queued"
            if not connection.execute(jobs.update().where(*waiting).values(priority=priority)).rowcount:
                raise ConflictError(f"job {job_id} is {job_row(connection, job_id).state}, not queued")
            add_event(connection, job_id, "queued", f"priority {priority}")
            return changed_row(connection, job_id, within)

    # ----------------------------------------------------------------------------------------------------- looked at

    def job(self, job_id: str) -> Job:
        """A job by its id. Raises `NotFoundError`."""
        with self.database.reading() as connection:
            return job_row(connection, job_id)

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
        with self.writing() as connection:
            fail_unknown_kinds(connection, limits.per_kind)
            columns = [jobs.c[name] for name in ("id", "kind", "owner", "priority", "created_s", "groups")]
            due = sa.select(*columns).where(jobs.c.state == "queued", jobs.c.due_s <= now_s)
            rows = connection.execute(due.order_by(jobs.c.seq).limit(MOST_WAITING)).all()
            waiting = [scheduling.Waiting(*row[:-1]) for row in rows]
            if not waiting:
                return []
            active = connection.execute(sa.select(jobs.c.kind, jobs.c.owner).where(jobs.c.state.in_(ACTIVE)))
            running = [(kind, owner) for kind, owner in active]
            starts = connection.execute(sa.select(jobs.c.owner, sa.func.max(jobs.c.started_s)).group_by(jobs.c.owner))
            last_start_s = {owner: at_s for owner, at_s in starts if at_s is not None}
            per_user = limits.by_user({row.owner: groups_in(row.groups) for row in rows})
            next_ones = scheduling.chosen(
                waiting, running, last_start_s, per_kind=limits.per_kind, per_user=per_user, now_s=now_s
            )
            begun = [self._begin(connection, job.id, now_s) for job in next_ones]
            return [job for job in begun if job is not None]

    @staticmethod
    def _begin(connection: sa.Connection, job_id: str, now_s: float) -> Job | None:
        """The job with its new attempt; None if it was cancelled in the meantime."""
        number = job_row(connection, job_id).attempt + 1
        begun = {"state": "starting", "attempt": number, "started_s": now_s, "beat_s": None, "moved_s": None}
        begun |= Progress(activity="starting").to_columns()
        waiting = jobs.c.id == job_id, jobs.c.state == "queued"
        if not connection.execute(jobs.update().where(*waiting).values(begun)).rowcount:
            return None
        row = {"job_id": job_id, "number": number, "submission_id": submission_id(job_id, number)}
        connection.execute(attempts.insert().values(row | {"state": "starting", "started_s": now_s}))
        add_event(connection, job_id, "starting", f"attempt {number}")
        return job_row(connection, job_id)

    def running(self, job_id: str, number: int) -> None:
        """Ray has taken the attempt; its hours, and the time without progress, count from now."""
        now_s = time.time()
        with self.writing() as connection:
            own = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state == "starting"
            running = {"state": "running", "moved_s": now_s} | Progress(activity="starting").to_columns()
            if connection.execute(jobs.update().where(*own).values(running)).rowcount:
                mine = attempts.c.job_id == job_id, attempts.c.number == number
                connection.execute(attempts.update().where(*mine).values(state="running", started_s=now_s))
                add_event(connection, job_id, "running", f"attempt {number} is with Ray")

    def beat(self, job_id: str, number: int, progress: Progress, idle_s: float = 0.0) -> None:
        """A sign of life of the attempt, and how far it is.

        Args:
            job_id: the job.
            number: of the attempt.
            progress: how far it is.
            idle_s: seconds since its progress or log last changed.
        """
        now_s = time.time()
        values = progress.to_columns() | {"beat_s": now_s, "moved_s": now_s - idle_s}
        with self.writing() as connection:
            own = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state.in_(ACTIVE)
            connection.execute(jobs.update().where(*own).values(values))

    def describe(self, job_id: str, number: int, activity: str) -> None:
        """Say what the attempt does, without a sign of life of it."""
        with self.writing() as connection:
            own = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state.in_(ACTIVE)
            connection.execute(jobs.update().where(*own).values(activity=clean(activity, 500)))

    def waiting(self, job_id: str, number: int, why: str) -> None:
        """The attempt cannot be handed to Ray yet."""
        with self.writing() as connection:
            own = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state == "starting"
            connection.execute(jobs.update().where(*own).values(Progress(activity=clean(why, 500)).to_columns()))
            add_event(connection, job_id, job_row(connection, job_id).state, why)

    def end(self, job_id: str, number: int, *, state: str, reason: str | None, exit_code: int | None) -> None:
        """The attempt and its job have ended."""
        now_s = time.time()
        values = {"state": state, "reason": None if reason is None else clean(reason), "ended_s": now_s}
        self._settle(job_id, number, state, values, reason, exit_code)

    def again(self, job_id: str, number: int, *, reason: str, exit_code: int | None, wait_s: float) -> None:
        """The attempt failed; the job waits for another one."""
        values = {"state": "queued", "reason": clean(reason), "due_s": time.time() + wait_s}
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
        text = None if text is None else clean(text)
        with self.writing() as connection:
            own = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state.in_(ACTIVE)
            if not connection.execute(jobs.update().where(*own).values(**values, eta_s=None)).rowcount:
                return  # settled before a crash
            over = {"state": attempt_state, "reason": text, "exit_code": exit_code, "ended_s": time.time()}
            mine = attempts.c.job_id == job_id, attempts.c.number == number
            connection.execute(attempts.update().where(*mine).values(over))
            add_event(connection, job_id, str(values["state"]), text or f"attempt {number} {attempt_state}")

    def expire(self, before_s: float) -> None:
        """Mark the jobs that ended before a time to be forgotten: from now on they cannot be queued again."""
        with self.writing() as connection:
            old = jobs.c.state.in_(ENDED), jobs.c.ended_s < before_s, jobs.c.delete_requested == 0
            connection.execute(jobs.update().where(*old).values(delete_requested=EXPIRED))

    def to_delete(self, *, limit: int) -> list[Job]:
        """Jobs that are to be deleted or forgotten, the oldest first."""
        query = sa.select(jobs).where(jobs.c.delete_requested != 0).order_by(jobs.c.seq).limit(limit)
        with self.database.reading() as connection:
            return [Job(**row) for row in connection.execute(query).mappings()]

    def forget(self, job_id: str) -> None:
        """Remove the rows of a job that has ended and is to be deleted."""
        with self.writing() as connection:
            # The job's row is locked by the first statement, and goes last: the others name it.
            marked = jobs.c.id == job_id, jobs.c.state.in_(ENDED), jobs.c.delete_requested != 0
            if connection.scalar(sa.select(jobs.c.id).where(*marked).with_for_update()) is not None:
                connection.execute(events.delete().where(events.c.job_id == job_id))
                connection.execute(attempts.delete().where(attempts.c.job_id == job_id))
                connection.execute(jobs.delete().where(jobs.c.id == job_id))
