"""Operations on jobs, attempts and events: the only module that changes the state of a job.

Every change is one transaction that names the state from which it starts. So a change that is repeated after a crash,
by the same or another process, does nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from service.errors import UsageError
from service.progress.record import Progress
from service.queue import scheduling
from service.queue.job import ACTIVE, ENDED, HIGHEST, LOWEST, Job
from service.queue.job_reader import JobReader
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
    require_same_request,
    row_by_key,
    submission_id,
)
from service.queue.requests import Check, Score, Train, Tune, to_json
from service.queue.tables import Database, attempts, events, jobs, lock

MAX_CANDIDATES = 5000
"""Bound of the number of waiting jobs that are compared when one can start."""
BY_USER, EXPIRED = 1, 2
"""Values of `delete_requested`: a user deletes the job with its files; `keep_days` have passed, and results stay."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the number of jobs that run at once."""

    per_kind: Mapping[str, int]
    """Bound by kind of job."""
    per_user: int
    """Bound for each user, unless `of_user` is given."""
    of_user: Callable[[str, Collection[str]], int] | None = None
    """Returns the bound for a user with these groups."""

    def by_user(self, groups: Mapping[str, Collection[str]]) -> dict[str, int]:
        """Return the bound for each user.

        Args:
            groups: groups of each user, by name of the user.
        """
        return {owner: self.of_user(owner, g) if self.of_user else self.per_user for owner, g in groups.items()}


class JobStore(JobReader):
    """Reads and changes the jobs in a database.

    Args:
        database: the queue's tables.
        fence: called at the beginning of each transaction that writes; raises if another dispatcher has taken over.
    """

    def __init__(self, database: Database, fence: Callable[[sa.Connection], None] | None = None) -> None:
        super().__init__(database)
        self.fence = fence

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Open a transaction that writes; it is refused for a dispatcher that has lost its lease."""
        with self.database.writing() as connection:
            if self.fence is not None:
                self.fence(connection)
            yield connection

    # ------------------------------------------------------------------------------------------------- users' changes

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
        """Add a job, unless the same idempotency key has added it before.

        Args:
            request: the job.
            owner: its user.
            groups: groups of the user that a login named.
            priority: among the jobs of this user.
            max_attempts: bound of the number of attempts.
            idempotency_key: key of the submission, so that a client can repeat it.
            source: id of the watch or schedule that submits the job.
            max_queued: bound of the number of waiting jobs of the user; None: unlimited.
            within: called with a new job's id in the transaction that adds it.

        Returns:
            The job, and whether it is new.

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
                    return require_same_request(earlier, text), False
                lock(
                    connection, f"jobs of {owner}"
                )  # else two submissions at once could both be the last one that the quota allows
                check_queued(connection, owner, max_queued)
                connection.execute(jobs.insert().values(row))
                add_event(connection, row["id"], "queued", "submitted")
                if within is not None:
                    within(connection, row["id"])
                return job_row(connection, row["id"]), True
        except IntegrityError:  # Postgres ran another submission with this key at the same time
            with self.database.reading() as connection:
                if earlier := row_by_key(connection, owner, idempotency_key):
                    return require_same_request(earlier, text), False
            raise

    def cancel(self, job_id: str, within: Within | None = None) -> Job:
        """Cancel a job: a waiting one at once, a running one within seconds by its dispatcher; an ended one stays.

        Args:
            job_id: the job.
            within: called in the same transaction.

        Returns:
            The job after the change.

        Raises:
            NotFoundError: there is no such job.
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

        Args:
            job_id: the job.
            within: called in the same transaction.

        Returns:
            The job after the change.

        Raises:
            NotFoundError: there is no such job.
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
        """Queue an ended job again; the new attempts continue its numbers and its MLflow run.

        Args:
            job_id: the job.
            within: called in the same transaction.
            max_queued: bound of the number of waiting jobs of the user; None: unlimited.

        Returns:
            The job after the change.

        Raises:
            ConflictError: the job has not ended, or is being deleted.
            TooManyJobsError: the owner has `max_queued` jobs waiting.
        """
        with self.writing() as connection:
            # Locked, so that a deletion cannot come between these checks and the change.
            job = job_row(connection, job_id, for_update=True)
            if job.delete_requested:
                raise ConflictError(f"job {job_id} is being deleted; submit a new one")
            if job.state not in ("failed", "cancelled"):
                raise ConflictError(f"job {job_id} is {job.state}; only a failed or cancelled one is retried")
            lock(connection, f"jobs of {job.owner}")
            check_queued(connection, job.owner, max_queued)
            queued = {"state": "queued", "reason": None, "cancel_requested": 0, "due_s": time.time(), "ended_s": None}
            queued |= {"first_attempt": job.attempt + 1}
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(queued))
            add_event(connection, job_id, "queued", "retried by hand")
            return changed_row(connection, job_id, within)

    def set_priority(self, job_id: str, priority: int, within: Within | None = None) -> Job:
        """Change the priority of a waiting job.

        Args:
            job_id: the job.
            priority: `LOWEST` to `HIGHEST`.
            within: called in the same transaction.

        Returns:
            The job after the change.

        Raises:
            ConflictError: the job does not wait.
            UsageError: the priority is out of range.
        """
        if not LOWEST <= priority <= HIGHEST:
            raise UsageError(f"priority {priority}: must be {LOWEST} to {HIGHEST}")
        with self.writing() as connection:
            waiting = jobs.c.id == job_id, jobs.c.state == "queued"
            if not connection.execute(jobs.update().where(*waiting).values(priority=priority)).rowcount:
                raise ConflictError(f"job {job_id} is {job_row(connection, job_id).state}, not queued")
            add_event(connection, job_id, "queued", f"priority {priority}")
            return changed_row(connection, job_id, within)

    # ----------------------------------------------------------------------------------------- the dispatcher's changes

    def admit(self, limits: Limits) -> list[Job]:
        """Start the next attempt of as many waiting jobs as the limits allow; return these jobs."""
        now_s = time.time()
        with self.writing() as connection:
            fail_unknown_kinds(connection, limits.per_kind)
            columns = [jobs.c[name] for name in ("id", "kind", "owner", "priority", "created_s", "groups")]
            due = sa.select(*columns).where(jobs.c.state == "queued", jobs.c.due_s <= now_s)
            rows = connection.execute(due.order_by(jobs.c.seq).limit(MAX_CANDIDATES)).all()
            candidates = [scheduling.Candidate(*row[:-1]) for row in rows]
            if not candidates:
                return []
            active = connection.execute(sa.select(jobs.c.kind, jobs.c.owner).where(jobs.c.state.in_(ACTIVE)))
            running = [(kind, owner) for kind, owner in active]
            starts = connection.execute(sa.select(jobs.c.owner, sa.func.max(jobs.c.started_s)).group_by(jobs.c.owner))
            last_start_s = {owner: at_s for owner, at_s in starts if at_s is not None}
            per_user = limits.by_user({row.owner: groups_in(row.groups) for row in rows})
            selected = scheduling.select_jobs(
                candidates, running, last_start_s, per_kind=limits.per_kind, per_user=per_user, now_s=now_s
            )
            started = [self._start_attempt(connection, job.id, now_s) for job in selected]
            return [job for job in started if job is not None]

    @staticmethod
    def _start_attempt(connection: sa.Connection, job_id: str, now_s: float) -> Job | None:
        """Start the next attempt of a job; return the job, or None if it was cancelled in the meantime."""
        number = job_row(connection, job_id).attempt + 1
        started = {"state": "starting", "attempt": number, "started_s": now_s, "beat_s": None, "moved_s": None}
        started |= Progress(activity="starting").to_columns()
        waiting = jobs.c.id == job_id, jobs.c.state == "queued"
        if not connection.execute(jobs.update().where(*waiting).values(started)).rowcount:
            return None
        row = {"job_id": job_id, "number": number, "submission_id": submission_id(job_id, number)}
        connection.execute(attempts.insert().values(row | {"state": "starting", "started_s": now_s}))
        add_event(connection, job_id, "starting", f"attempt {number}")
        return job_row(connection, job_id)

    def mark_running(self, job_id: str, number: int) -> None:
        """Mark the attempt as taken by Ray; its hours, and its time without progress, count from now."""
        now_s = time.time()
        with self.writing() as connection:
            this_job = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state == "starting"
            running = {"state": "running", "moved_s": now_s} | Progress(activity="starting").to_columns()
            if connection.execute(jobs.update().where(*this_job).values(running)).rowcount:
                this_attempt = attempts.c.job_id == job_id, attempts.c.number == number
                connection.execute(attempts.update().where(*this_attempt).values(state="running", started_s=now_s))
                add_event(connection, job_id, "running", f"attempt {number} is with Ray")

    def record_heartbeat(self, job_id: str, number: int, progress: Progress, idle_s: float = 0.0) -> None:
        """Record a heartbeat of the attempt, and how far it is.

        Args:
            job_id: the job.
            number: of the attempt.
            progress: of the job.
            idle_s: seconds since its progress or log last changed.
        """
        now_s = time.time()
        values = progress.to_columns() | {"beat_s": now_s, "moved_s": now_s - idle_s}
        with self.writing() as connection:
            this_job = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state.in_(ACTIVE)
            connection.execute(jobs.update().where(*this_job).values(values))

    def set_activity(self, job_id: str, number: int, activity: str) -> None:
        """Set the activity of the attempt without a heartbeat."""
        with self.writing() as connection:
            this_job = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state.in_(ACTIVE)
            connection.execute(jobs.update().where(*this_job).values(activity=clean(activity, 500)))

    def mark_waiting(self, job_id: str, number: int, reason: str) -> None:
        """Record why the attempt cannot be submitted to Ray yet."""
        with self.writing() as connection:
            this_job = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state == "starting"
            connection.execute(
                jobs.update().where(*this_job).values(Progress(activity=clean(reason, 500)).to_columns())
            )
            add_event(connection, job_id, job_row(connection, job_id).state, reason)

    def end_attempt(self, job_id: str, number: int, *, state: str, reason: str | None, exit_code: int | None) -> None:
        """End the attempt and its job.

        Args:
            job_id: the job.
            number: of the attempt.
            state: of the job from now on.
            reason: why it ended, for its user.
            exit_code: of the command; None if it is not known.
        """
        now_s = time.time()
        values = {"state": state, "reason": None if reason is None else clean(reason), "ended_s": now_s}
        self._settle(job_id, number, state, values, reason, exit_code)

    def requeue(self, job_id: str, number: int, *, reason: str, exit_code: int | None, wait_s: float) -> None:
        """End the attempt as failed, and queue the job again.

        Args:
            job_id: the job.
            number: of the attempt.
            reason: why it failed, for its user.
            exit_code: of the command; None if it is not known.
            wait_s: seconds before the next attempt.
        """
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
            this_job = jobs.c.id == job_id, jobs.c.attempt == number, jobs.c.state.in_(ACTIVE)
            if not connection.execute(jobs.update().where(*this_job).values(**values, eta_s=None)).rowcount:
                return  # it was settled before a crash
            ended = {"state": attempt_state, "reason": text, "exit_code": exit_code, "ended_s": time.time()}
            this_attempt = attempts.c.job_id == job_id, attempts.c.number == number
            connection.execute(attempts.update().where(*this_attempt).values(ended))
            add_event(connection, job_id, str(values["state"]), text or f"attempt {number} {attempt_state}")

    def expire(self, before_s: float) -> None:
        """Mark the jobs that ended before a time as expired: from now on they cannot be queued again.

        Args:
            before_s: the time in seconds since 1970.
        """
        with self.writing() as connection:
            old = jobs.c.state.in_(ENDED), jobs.c.ended_s < before_s, jobs.c.delete_requested == 0
            connection.execute(jobs.update().where(*old).values(delete_requested=EXPIRED))

    def jobs_to_delete(self, *, limit: int) -> list[Job]:
        """Return jobs that are deleted or expired, the oldest first."""
        query = sa.select(jobs).where(jobs.c.delete_requested != 0).order_by(jobs.c.seq).limit(limit)
        with self.database.reading() as connection:
            return [Job(**row) for row in connection.execute(query).mappings()]

    def forget(self, job_id: str) -> None:
        """Remove the rows of a job that has ended and is marked for deletion."""
        with self.writing() as connection:
            # The first statement locks the job's row, so that no retry comes between. The row goes last: the others
            # refer to it.
            marked = jobs.c.id == job_id, jobs.c.state.in_(ENDED), jobs.c.delete_requested != 0
            if connection.scalar(sa.select(jobs.c.id).where(*marked).with_for_update()) is not None:
                connection.execute(events.delete().where(events.c.job_id == job_id))
                connection.execute(attempts.delete().where(attempts.c.job_id == job_id))
                connection.execute(jobs.delete().where(jobs.c.id == job_id))
