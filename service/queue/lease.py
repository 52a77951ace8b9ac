"""A right that one process has at a time, and loses when it dies."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from service.errors import MagnetError
from service.queue.tables import Database, leases, now_s


class LeaseLostError(MagnetError):
    """Another process holds the lease: this one must change nothing any more."""


class Lease:
    """A lease in the database, timed by the database's clock where it has one.

    Args:
        database: of the queue.
        name: of what is leased.
        holder: who wants it; another name for each process.
        seconds: after which another process may take it, unless it is renewed.
    """

    def __init__(self, database: Database, name: str, holder: str, seconds: float) -> None:
        self._database, self._name, self.holder, self._seconds = database, name, holder, seconds

    def take(self) -> bool:
        """Take or renew the lease; whether this process holds it."""
        try:
            with self._database.writing() as connection:
                at_s = now_s(connection)
                values = {"holder": self.holder, "until_s": at_s + self._seconds}
                ours_or_over = sa.or_(leases.c.holder == self.holder, leases.c.until_s < at_s)
                row = leases.c.name == self._name
                if connection.execute(leases.update().where(row, ours_or_over).values(values)).rowcount:
                    return True
                if connection.scalar(sa.select(leases.c.holder).where(row)) is not None:
                    return False
                connection.execute(leases.insert().values(name=self._name, **values))
                return True
        except IntegrityError:  # another process was the first
            return False

    def require(self, connection: sa.Connection) -> None:
        """Let a transaction go on only while this process holds the lease, which nobody can take before it ends.

        Without it a process that was paused, and whose lease went to another one, would write once more.

        Raises:
            LeaseLostError: another process has taken it.
        """
        holder = sa.select(leases.c.holder).where(leases.c.name == self._name).with_for_update(read=True)
        if connection.scalar(holder) != self.holder:
            raise LeaseLostError(f"another process holds the lease {self._name!r}")

    def give_back(self) -> None:
        """Let another process take it at once."""
        with self._database.writing() as connection:
            connection.execute(leases.delete().where(leases.c.name == self._name, leases.c.holder == self.holder))


def is_held(database: Database, name: str) -> bool:
    """Whether a process holds a lease."""
    with database.reading() as connection:
        until_s = connection.scalar(sa.select(leases.c.until_s).where(leases.c.name == name))
        return until_s is not None and until_s > now_s(connection)
