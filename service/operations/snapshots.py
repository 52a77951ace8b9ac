"""Snapshots of the queue's tables: consistent copies as SQLite files, and rows moved between databases."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext

from service.errors import UsageError
from service.queue.tables import METADATA, Database, leases

ROWS_AT_ONCE = 1000
APPEND_ONLY = "audit"
"""Table whose rows a trigger protects in Postgres."""


def take(database_url: str, target: Path) -> str:
    """Copy the queue's tables as they are at one moment; services may be at work.

    Args:
        database_url: SQLite or Postgres.
        target: new SQLite file.

    Returns:
        The revision of the tables.

    Raises:
        UsageError: there is no database, or it is damaged or of another version of this program.
    """
    url = sa.make_url(database_url)
    if url.get_backend_name() == "sqlite":
        assert url.database
        if not Path(url.database).is_file():
            raise UsageError(f"no database at {url.database}; check --config, or start the service once")
        copy_sqlite(Path(url.database), target)
        return _revision(target)
    source = Database(database_url)
    copy = Database(f"sqlite:///{target}")
    try:
        repeatable = source.engine.execution_options(isolation_level="REPEATABLE READ")
        with repeatable.begin() as reading, copy.writing() as writing:
            _copy_rows(reading, writing)
    finally:
        source.close()
        copy.close()
    settle(target)
    return _revision(target)


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy an SQLite file at one moment, while others write to it.

    Raises:
        UsageError: it is damaged.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(source, timeout=30)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)
    except sqlite3.Error as error:
        raise UsageError(f"{source}: {error}; it is damaged or no SQLite file") from error
    settle(target)


def settle(path: Path) -> None:
    """Make an SQLite file one file, without a log beside it, and check it.

    Raises:
        UsageError: it is damaged.
    """
    try:
        with closing(sqlite3.connect(path)) as connection:
            found = connection.execute("PRAGMA quick_check").fetchone()[0]
            connection.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise UsageError(f"{path.name}: {error}; it is damaged") from error
    if found != "ok":
        raise UsageError(f"{path.name}: {found}; it is damaged")


def prepare(path: Path) -> None:
    """Bring a copy to this program's version of the tables, and free the dispatcher's lease in it.

    Raises:
        UsageError: it belongs to a newer version of this program.
    """
    settle(path)
    database = Database(f"sqlite:///{path}")
    try:
        with database.writing() as connection:
            connection.execute(leases.delete())
    finally:
        database.close()
    settle(path)


def count_rows(path: Path) -> dict[str, int]:
    """Rows of each table of an SQLite file."""
    with closing(sqlite3.connect(path)) as connection:
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        names = [row[0] for row in connection.execute(tables)]
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in sorted(names)}


def replace_rows(database_url: str, source: Path) -> None:
    """Replace the rows of the queue's tables in Postgres by those of an SQLite file, in one transaction."""
    old, new = Database(f"sqlite:///{source}"), Database(database_url)
    try:
        with old.reading() as reading, new.writing() as writing:
            writing.execute(sa.text(f"ALTER TABLE {APPEND_ONLY} DISABLE TRIGGER USER"))
            for table in reversed(METADATA.sorted_tables):
                writing.execute(table.delete())
            _copy_rows(reading, writing)
            for table in METADATA.sorted_tables:
                _raise_sequence(writing, table)
            writing.execute(sa.text(f"ALTER TABLE {APPEND_ONLY} ENABLE TRIGGER USER"))
    finally:
        old.close()
        new.close()


def _copy_rows(reading: sa.Connection, writing: sa.Connection) -> None:
    for table in METADATA.sorted_tables:
        rows = reading.execution_options(yield_per=ROWS_AT_ONCE).execute(sa.select(table)).mappings()
        for part in rows.partitions(ROWS_AT_ONCE):
            writing.execute(table.insert(), [dict(row) for row in part])


def _raise_sequence(connection: sa.Connection, table: sa.Table) -> None:
    """Let numbers of new rows follow those that were inserted with theirs."""
    if "seq" in table.c and table.c.seq.primary_key:
        latest = sa.func.coalesce(sa.func.max(table.c.seq), 0) + 1
        name = sa.func.pg_get_serial_sequence(table.name, "seq")
        connection.execute(sa.select(sa.func.setval(name, sa.select(latest).scalar_subquery(), False)))


def _revision(path: Path) -> str:
    engine = sa.create_engine(f"sqlite:///{path}")
    try:
        with engine.connect() as connection:
            if not sa.inspect(connection).has_table("jobs"):
                raise UsageError(f"{path.name} holds no queue; check --config")
            return MigrationContext.configure(connection).get_current_revision() or "0001"
    finally:
        engine.dispose()
