"""Reads jobs, attempts and events from the database."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from service.queue.job import ACTIVE, Attempt, Event, Job
from service.queue.job_rows import job_row
from service.queue.tables import Database, attempts, events, jobs


@dataclass(frozen=True, slots=True)
class Filter:
    """Selects jobs to list; None: all."""

    owner: str | None = None
    """User who submitted the job."""
    state: str | None = None
    """State of the job."""
    kind: str | None = None
    """Kind of the job."""


class JobReader:
    """Reads the jobs in a database.

    Args:
        database: with the queue's tables.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def job(self, job_id: str) -> Job:
        """Return a job. Raises `NotFoundError` if there is none with this id."""
        with self.database.reading() as connection:
            return job_row(connection, job_id)

    def page(self, which: Filter, *, before: int | None = None, limit: int = 50) -> list[Job]:
        """Return a page of jobs, newest first.

        Args:
            which: the filter.
            before: `seq` of the last job of the page before; None: the first page.
            limit: bound of the number of jobs.
        """
        query = sa.select(jobs).order_by(jobs.c.seq.desc()).limit(limit)
        for column, value in ((jobs.c.owner, which.owner), (jobs.c.state, which.state), (jobs.c.kind, which.kind)):
            query = query if value is None else query.where(column == value)
        query = query if before is None else query.where(jobs.c.seq < before)
        with self.database.reading() as connection:
            return [Job(**row) for row in connection.execute(query).mappings()]

    def attempts(self, job_id: str) -> list[Attempt]:
        """Return the attempts of a job, in order."""
        query = sa.select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
        with self.database.reading() as connection:
            return [Attempt(**row) for row in connection.execute(query).mappings()]

    def events(self, job_id: str, *, after: int = 0, limit: int = 500) -> list[Event]:
        """Return the events of a job, in order.

        Args:
            job_id: the job.
            after: `seq` of an event; only later ones are returned.
            limit: bound of the number of events.
        """
        query = sa.select(events).where(events.c.job_id == job_id, events.c.seq > after)
        with self.database.reading() as connection:
            return [Event(**row) for row in connection.execute(query.order_by(events.c.seq).limit(limit)).mappings()]

    def active(self) -> list[Job]:
        """Return the jobs with an attempt that has not ended."""
        with self.database.reading() as connection:
            query = sa.select(jobs).where(jobs.c.state.in_(ACTIVE)).order_by(jobs.c.seq)
            return [Job(**row) for row in connection.execute(query).mappings()]

    def counts(self) -> dict[tuple[str, str], int]:
        """Return the number of jobs by kind and state."""
        query = sa.select(jobs.c.kind, jobs.c.state, sa.func.count()).group_by(jobs.c.kind, jobs.c.state)
        with self.database.reading() as connection:
            return {(kind, state): count for kind, state, count in connection.execute(query)}
