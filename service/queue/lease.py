"""A lease in the database: one process has it at a time, and loses it when it dies."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from service.errors import MagnetError
from service.queue.tables import Database, leases, now_s


class LeaseLostError(MagnetError):
    """Another process holds the lease, so this one must not write any more. To act: nobody. A retry does not help."""


class Lease:
    """A lease, timed by the database's clock where it has one.

    Args:
        database: of the queue.
        name: of what is leased.
        holder: unique name of this process.
        seconds: time after which another process may take the lease, unless it is renewed.
    """

    def __init__(self, database: Database, name: str, holder: str, seconds: float) -> None:
        self._database, self._name, self.holder, self._seconds = database, name, holder, seconds

    def take(self) -> bool:
        """Take or renew the lease; return whether this process holds it."""
        try:
            with self._database.writing() as connection:
                at_s = now_s(connection)
                values = {"holder": self.holder, "until_s": at_s + self._seconds}
                is_free = sa.or_(leases.c.holder == self.holder, leases.c.until_s < at_s)
                row = leases.c.name == self._name
                if connection.execute(leases.update().where(row, is_free).values(values)).rowcount:
                    return True
                if connection.scalar(sa.select(leases.c.holder).where(row)) is not None:
                    return False
                connection.execute(leases.insert().values(name=self._name, **values))
                return True
        except IntegrityError:  # another process inserted the row at the same time
            return False

    def require(self, connection: sa.Connection) -> None:
        """Refuse a transaction of a process that lost the lease.

        Without this check, a process that was paused and whose lease another one took would write once more when it
        continues. The lock on the row keeps other processes from taking the lease before the transaction ends.

        Args:
            connection: in a transaction.

        Raises:
            LeaseLostError: another process holds the lease.
        """
        holder = sa.select(leases.c.holder).where(leases.c.name == self._name).with_for_update(read=True)
        if connection.scalar(holder) != self.holder:
            raise LeaseLostError(f"another process holds the lease {self._name!r}")

    def give_back(self) -> None:
        """Give the lease back, so that another process can take it at once."""
        with self._database.writing() as connection:
            connection.execute(leases.delete().where(leases.c.name == self._name, leases.c.holder == self.holder))


def is_held(database: Database, name: str) -> bool:
    """Return whether a process holds a lease."""
    with database.reading() as connection:
        until_s = connection.scalar(sa.select(leases.c.until_s).where(leases.c.name == name))
        return until_s is not None and until_s > now_s(connection)
