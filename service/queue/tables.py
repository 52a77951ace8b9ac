"""The tables of the queue, on SQLite or Postgres, and transactions on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Float, ForeignKey, Integer, String, Text
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, SQLAlchemyError

from service.errors import MagnetError, UsageError

BUSY_S = 30
"""Seconds that a writer waits for the transaction of another one in SQLite."""
MIGRATIONS = Path(__file__).with_name("migrations")
"""Folder of the steps between versions of the tables."""

CORRUPT_SQLITE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
"""Names of SQLite's errors of a corrupt file."""
CORRUPT_POSTGRES = ("XX001", "XX002")
"""SQLSTATE of corrupt data, and of a corrupt index."""
UNAVAILABLE = (OperationalError, InterfaceError, InternalError)
"""Errors of a database that is unreachable, locked, full or shutting down."""

METADATA = sa.MetaData()

jobs = sa.Table(
    "jobs",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), unique=True, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("request", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text),
    Column("priority", Integer, nullable=False),
    Column("idempotency_key", String(200)),
    Column("attempt", Integer, nullable=False),
    Column("first_attempt", Integer, nullable=False),  # number of the first attempt since the last retry by hand
    Column("max_attempts", Integer, nullable=False),
    Column("cancel_requested", Integer, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("due_s", Float, nullable=False),
    Column("started_s", Float),
    Column("ended_s", Float),
    Column("beat_s", Float),
    Column("done", Integer),
    Column("total", Integer),
    Column("eta_s", Float),
    Column("activity", Text),
    Column("mlflow_run", String(64)),
    Column("source", String(64)),  # the watch or schedule that submitted it
    Column("moved_s", Float),  # time of the last change of progress or log
    Column("delete_requested", Integer, nullable=False, server_default="0"),
    Column(
        "groups", Text, nullable=False, server_default="[]"
    ),  # JSON; the owner's, as the login named them at the submission
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index("jobs_by_state", "state", "due_s"),
    sa.Index("jobs_by_owner", "owner", "seq"),
)

attempts = sa.Table(
    "attempts",
    METADATA,
    Column("job_id", String(64), ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("submission_id", String(80), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text),
    Column("exit_code", Integer),
    Column("started_s", Float, nullable=False),
    Column("ended_s", Float),
)

events = sa.Table(
    "events",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(64), ForeignKey("jobs.id"), nullable=False, index=True),
    Column("at_s", Float, nullable=False),
    Column("state", String(16), nullable=False),
    Column("text", Text, nullable=False),
)

tokens = sa.Table(
    "tokens",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("sha256", String(64), unique=True, nullable=False),
    Column("owner", String(64), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("created_s", Float, nullable=False),
    Column("expires_s", Float),
    Column("revoked_s", Float),
    Column("groups", Text, nullable=False, server_default="[]"),  # JSON; those that a login named
    Column("note", String(200)),
    Column("last_used_s", Float),
)

recurring = sa.Table(  # watches and schedules
    "recurring",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), unique=True, nullable=False),
    Column("owner", String(64), nullable=False),
    Column("what", String(16), nullable=False),
    Column("body", Text, nullable=False),
    Column("next_s", Float, nullable=False),
    Column("note", Text),
    Column("disabled", Text),  # why it submits no jobs any more
    Column("groups", Text, nullable=False, server_default="[]"),  # JSON; the owner's when the entry was added
)

arrived = sa.Table(
    "arrived",
    METADATA,
    Column("watch_id", String(64), primary_key=True),
    Column("uri", String(1000), primary_key=True),
    Column("etag", String(200), primary_key=True),
    Column("job_id", String(64), nullable=False),
    Column("at_s", Float, nullable=False),
)

used_logins = sa.Table(  # ID tokens that were exchanged for a token, until they expire
    "used_logins",
    METADATA,
    Column("digest", String(64), primary_key=True),
    Column("until_s", Float, nullable=False),
)

leases = sa.Table(
    "leases",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("holder", String(80), nullable=False),
    Column("until_s", Float, nullable=False),
)

audit = sa.Table(  # triggers of the database refuse to change or delete its rows
    "audit",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("at_s", Float, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("token_id", String(32)),
    Column("address", String(64)),
    Column("action", String(64), nullable=False),
    Column("object", String(1000)),
    Column("outcome", String(16), nullable=False),
    Column("detail", Text),
    Column("digest", String(64), nullable=False),  # of this row and the digest before it
)

incidents = sa.Table(  # starts, stops and errors of the service's processes
    "incidents",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("part", String(32), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("at_s", Float, nullable=False),
    Column("text", Text),
    sa.Index("incidents_by_part", "part", "at_s"),
)


class DatabaseUnavailableError(MagnetError):
    """The database is unavailable. To act: its operator. A retry can help."""


class DatabaseCorruptError(MagnetError):
    """The database is corrupt. To act: its operator, who restores a backup. A retry does not help."""


class Database:
    """The database of the queue. Opening it makes the tables, or upgrades them to this program's version.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql+psycopg://...``.

    Raises:
        UsageError: the URL is invalid, or the tables belong to a newer version of this program.
        DatabaseAwayError: the database is unavailable.
        DatabaseCorruptError: the file is corrupt, or is not a database.
    """

    def __init__(self, url: str) -> None:
        try:
            self.engine = sa.create_engine(_with_driver(url), pool_pre_ping=True)
        except (SQLAlchemyError, ImportError) as error:
            raise UsageError(f"database: {error}; use sqlite:///PATH or postgresql+psycopg://...") from error
        if self.engine.dialect.name == "sqlite":
            self._prepare_sqlite()
        try:
            with self.writing() as connection:
                lock(connection, "migrations")  # else two processes that start at once would both make the tables
                _upgrade(connection)
        except BaseException:
            self.engine.dispose()
            raise

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Open a connection for single SELECTs."""
        with _map_errors(), self.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Open a transaction. SQLite allows one writer at a time."""
        with _map_errors(), self.engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _prepare_sqlite(self) -> None:
        assert self.engine.url.database
        folder = Path(self.engine.url.database).parent
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "restore" / "journal.json").exists():
            raise UsageError(f"a restore into {folder} was interrupted; run the same `magnet restore` again")

        @sa.event.listens_for(self.engine, "connect")
        def configure(connection: Any, _record: object) -> None:
            connection.isolation_level = None  # the driver would begin a transaction only at its first write
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA busy_timeout={BUSY_S * 1000}")

        @sa.event.listens_for(self.engine, "begin")
        def begin(connection: sa.Connection) -> None:
            if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
                connection.exec_driver_sql("BEGIN IMMEDIATE")


def lock(connection: sa.Connection, name: str) -> None:
    """Let only one transaction at a time pass this point, until it ends.

    SQLite needs no lock: it allows one writer at a time.

    Args:
        connection: in a transaction.
        name: of the lock.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})


def now_s(connection: sa.Connection) -> float:
    """Return seconds since 1970, by the server's clock if there is a server: the clocks of machines may differ."""
    if connection.dialect.name == "postgresql":
        return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)
    return time.time()


def _upgrade(connection: sa.Connection) -> None:
    """Run the migrations that these tables lack: all of them, or after an error none."""
    scripts = Config()
    scripts.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))  # "%" begins an interpolation
    scripts.attributes["connection"] = connection
    steps = ScriptDirectory.from_config(scripts)
    version = MigrationContext.configure(connection).get_current_revision()
    if version == steps.get_current_head():
        return
    # Before Alembic, the first version of the program kept its version in the table "about".
    if version is None and sa.inspect(connection).has_table("about"):
        command.stamp(scripts, version := "0001")
    if version is not None and version not in {step.revision for step in steps.walk_revisions()}:
        raise UsageError(
            f"the database has tables of version {version}, newer than this program's {steps.get_current_head()}; "
            "install the program's newer version, or restore a backup"
        )
    command.upgrade(scripts, "head")


@contextmanager
def _map_errors() -> Iterator[None]:
    """Raise the errors of the driver as errors of this module."""
    try:
        yield
    except DBAPIError as error:
        if _is_corrupt(error):
            message = f"the queue's database is corrupt ({error.orig}); stop the service and restore a backup"
            raise DatabaseCorruptError(message) from error
        if isinstance(error, UNAVAILABLE) or error.connection_invalidated:
            raise DatabaseUnavailableError(f"the queue's database failed: {error.orig}") from error
        raise  # the database refuses the statement: waiting does not help


def _is_corrupt(error: DBAPIError) -> bool:
    """Return whether an error of the driver means that the database's files are corrupt."""
    if getattr(error.orig, "sqlstate", None) in CORRUPT_POSTGRES:
        return True
    return getattr(error.orig, "sqlite_errorname", "").startswith(CORRUPT_SQLITE)


def _with_driver(url: str) -> str:
    """Return the URL with the driver for Postgres that is installed; SQLAlchemy's default is another one."""
    return url.replace("postgresql://", "postgresql+psycopg://", 1) if url.startswith("postgresql://") else url
