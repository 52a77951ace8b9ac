"""Snapshots of the queue's tables: consistent copies as SQLite files, and rows copied between databases."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext

from service.errors import UsageError
from service.queue.tables import METADATA, Database, leases

BATCH_ROWS = 1000
"""Number of rows that are copied at a time."""
APPEND_ONLY = "audit"
"""Table in which a trigger of Postgres forbids changes."""


def take_snapshot(database_url: str, target: Path) -> str:
    """Copy the queue's tables as they are at one moment, while the service may run.

    Args:
        database_url: URL of an SQLite or Postgres database.
        target: SQLite file to create.

    Returns:
        The revision of the tables.

    Raises:
        UsageError: there is no database, it is corrupt, or it belongs to another version of this program.
    """
    url = sa.make_url(database_url)
    if url.get_backend_name() == "sqlite":
        assert url.database
        if not Path(url.database).is_file():
            raise UsageError(f"no database at {url.database}; check --config, or start the service once to create it")
        copy_sqlite(Path(url.database), target)
        return _read_revision(target)
    source = Database(database_url)
    copy = Database(f"sqlite:///{target}")
    try:
        # All tables are read in one transaction, so that the copy is of one moment.
        repeatable = source.engine.execution_options(isolation_level="REPEATABLE READ")
        with repeatable.begin() as reading, copy.writing() as writing:
            _copy_rows(reading, writing)
    finally:
        source.close()
        copy.close()
    compact(target)
    return _read_revision(target)


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy an SQLite file as it is at one moment, while other processes may write to it.

    Args:
        source: file to copy.
        target: file to create, with mode 600.

    Raises:
        UsageError: the source is corrupt, or not an SQLite file.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        # Other processes may hold the lock for a moment.
        with closing(sqlite3.connect(source, timeout=30)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)
    except sqlite3.Error as error:
        raise UsageError(f"{source}: {error}; it is corrupt, or not an SQLite file") from error
    compact(target)


def compact(path: Path) -> None:
    """Merge an SQLite database into a single file, without a write-ahead log, and check it.

    Args:
        path: the database's file.

    Raises:
        UsageError: it is corrupt.
    """
    try:
        with closing(sqlite3.connect(path)) as connection:
            result = connection.execute("PRAGMA quick_check").fetchone()[0]
            connection.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise UsageError(f"{path.name}: {error}; it is corrupt") from error
    if result != "ok":
        raise UsageError(f"{path.name}: {result}; it is corrupt")


def upgrade_copy(path: Path) -> None:
    """Upgrade a copy to this program's version of the tables, and remove the dispatcher's lease from it.

    Args:
        path: the copy, an SQLite file.

    Raises:
        UsageError: the copy belongs to a newer version of this program.
    """
    compact(path)
    database = Database(f"sqlite:///{path}")
    try:
        with database.writing() as connection:
            # The holder ran when the copy was taken; its lease would keep the restored service's dispatcher waiting.
            connection.execute(leases.delete())
    finally:
        database.close()
    compact(path)


def count_rows(path: Path) -> dict[str, int]:
    """Return the number of rows of each table of an SQLite file."""
    with closing(sqlite3.connect(path)) as connection:
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        names = [row[0] for row in connection.execute(tables)]
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in sorted(names)}


def replace_rows(database_url: str, source: Path) -> None:
    """Replace the rows of the queue's tables in Postgres by those of an SQLite file, in one transaction.

    Args:
        database_url: URL of the Postgres database.
        source: the SQLite file.
    """
    old, new = Database(f"sqlite:///{source}"), Database(database_url)
    try:
        with old.reading() as reading, new.writing() as writing:
            # The trigger forbids deleting rows, which a restore must do.
            writing.execute(sa.text(f"ALTER TABLE {APPEND_ONLY} DISABLE TRIGGER USER"))
            # Sorted by foreign keys: tables that refer to others are emptied first and filled last.
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
        rows = reading.execution_options(yield_per=BATCH_ROWS).execute(sa.select(table)).mappings()
        for part in rows.partitions(BATCH_ROWS):
            writing.execute(table.insert(), [dict(row) for row in part])


def _raise_sequence(connection: sa.Connection, table: sa.Table) -> None:
    """Make the numbers of new rows follow those of the inserted rows, which carried their numbers with them."""
    if "seq" in table.c and table.c.seq.primary_key:
        latest = sa.func.coalesce(sa.func.max(table.c.seq), 0) + 1
        name = sa.func.pg_get_serial_sequence(table.name, "seq")
        connection.execute(sa.select(sa.func.setval(name, sa.select(latest).scalar_subquery(), False)))


def _read_revision(path: Path) -> str:
    """Return the revision of the tables in an SQLite file. Raises `UsageError` if it holds no queue."""
    engine = sa.create_engine(f"sqlite:///{path}")
    try:
        with engine.connect() as connection:
            if not sa.inspect(connection).has_table("jobs"):
                raise UsageError(f"{path.name} is not a queue's database; check --config")
            return MigrationContext.configure(connection).get_current_revision() or "0001"
    finally:
        engine.dispose()
