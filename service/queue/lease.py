"""A right that one process has at a time, and loses when it dies."""

from __future__ import annotations

import time

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from service.queue.tables import Database, leases


class Lease:
    """A lease in the database; clocks of the machines that share it should agree within a few seconds.

    Args:
        database: of the queue.
        name: of what is leased.
        holder: who wants it; another name for each process.
        seconds: after which it falls to another one, unless it is taken again.
    """

    def __init__(self, database: Database, name: str, holder: str, seconds: float) -> None:
        self._database, self._name, self._holder, self._seconds = database, name, holder, seconds

    def take(self) -> bool:
        """Take the lease, or take it for longer; whether it is ours."""
        now_s = time.time()
        values = {"holder": self._holder, "until_s": now_s + self._seconds}
        ours_or_over = sa.or_(leases.c.holder == self._holder, leases.c.until_s < now_s)
        try:
            with self._database.writing() as connection:
                row = leases.c.name == self._name
                if connection.execute(leases.update().where(row, ours_or_over).values(values)).rowcount:
                    return True
                if connection.scalar(sa.select(leases.c.holder).where(row)) is not None:
                    return False
                connection.execute(leases.insert().values(name=self._name, **values))
                return True
        except IntegrityError:  # another one was the first
            return False

    def give_back(self) -> None:
        """Let another one have it at once."""
        with self._database.writing() as connection:
            connection.execute(leases.delete().where(leases.c.name == self._name, leases.c.holder == self._holder))
