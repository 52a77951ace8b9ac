"""Migrations of the tables: no row is lost, and a kill leaves either the old or the new version."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from service.errors import UsageError
from service.queue import tables
from service.queue.job import STATES
from service.queue.job_reader import Filter
from service.queue.store import JobStore, Limits
from service.queue.tables import METADATA, MIGRATIONS, Database, DatabaseCorruptError, DatabaseUnavailableError
from tests.postgres import postgres

pytestmark = pytest.mark.slow

OLD = ("jobs", "attempts", "events", "tokens", "recurring", "arrived", "leases")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/queue.db"
        return
    with postgres() as server:
        yield server.url


def make_version_1(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Make the tables of the program's first version, with a job in every state; return their rows."""
    engine = sa.create_engine(url)
    scripts = Config()
    scripts.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        scripts.attributes["connection"] = connection
        command.upgrade(scripts, "0001")
        connection.execute(sa.text("DROP TABLE alembic_version"))
        connection.execute(sa.text("CREATE TABLE about (version INTEGER NOT NULL)"))
        connection.execute(sa.text("INSERT INTO about VALUES (1)"))
        for number, state in enumerate(STATES):
            _insert(
                connection,
                "jobs",
                id=f"check-{number}",
                kind="check",
                owner="ada",
                request='{"kind": "check"}',
                state=state,
                priority=0,
                attempt=1,
                first_attempt=1,
                max_attempts=5,
                cancel_requested=0,
                created_s=1.5,
                due_s=2.5,
                reason="because \u00fc",
                idempotency_key=f"key-{number}",
            )
            _insert(
                connection,
                "attempts",
                job_id=f"check-{number}",
                number=1,
                submission_id=f"check-{number}-1",
                state=state,
                started_s=3.5,
                exit_code=1,
            )
            _insert(connection, "events", job_id=f"check-{number}", at_s=4.5, state=state, text="x")
        _insert(connection, "tokens", id="t", sha256="0" * 64, owner="ada", scope="admin", created_s=1.0)
        _insert(connection, "recurring", id="watch-1", owner="ada", what="watch", body="{}", next_s=9.0)
        _insert(connection, "arrived", watch_id="watch-1", uri="/a.svs", etag="e", job_id="check-0", at_s=1.0)
        _insert(connection, "leases", name="dispatcher", holder="h", until_s=1.0)
        rows = rows_of(connection, None)
    engine.dispose()
    return rows


def _insert(connection: sa.Connection, table: str, **values: object) -> None:
    columns = ", ".join(values)
    places = ", ".join(f":{name}" for name in values)
    connection.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({places})"), values)


def rows_of(connection: sa.Connection, columns: dict[str, list[str]] | None) -> dict[str, list[tuple[object, ...]]]:
    """Return the rows of the old tables, with some columns or all."""
    names = columns or columns_of(connection)
    read = {table: sa.text(f"SELECT {', '.join(names[table])} FROM {table} ORDER BY 1") for table in OLD}
    return {table: [tuple(row) for row in connection.execute(query)] for table, query in read.items()}


def columns_of(connection: sa.Connection) -> dict[str, list[str]]:
    inspector = sa.inspect(connection)
    return {table: [column["name"] for column in inspector.get_columns(table)] for table in OLD}


def old_columns() -> dict[str, list[str]]:
    new = {"jobs": {"moved_s", "delete_requested", "groups"}, "recurring": {"disabled", "groups"}}
    new["tokens"] = {"groups", "note", "last_used_s"}
    return {name: [c.name for c in METADATA.tables[name].columns if c.name not in new.get(name, ())] for name in OLD}


def test_a_database_of_the_first_version_is_upgraded_and_nothing_is_lost(url: str) -> None:
    before = make_version_1(url)
    database = Database(url)
    with database.reading() as connection:
        after = rows_of(connection, old_columns())
        assert not sa.inspect(connection).has_table("about")
    assert {table: sorted(map(str, rows)) for table, rows in after.items()} == {
        table: sorted(map(str, rows)) for table, rows in before.items()
    }
    store = JobStore(database)
    assert {job.state for job in store.page(Filter())} == set(STATES)
    assert {job.groups for job in store.page(Filter())} == {"[]"}
    [started] = store.admit(Limits({"check": 9}, 9))  # the job that waited starts
    assert (started.id, started.attempt) == ("check-0", 2)
    database.close()
    Database(url).close()  # opening again changes nothing


@pytest.mark.parametrize("old", [False, True])
def test_the_tables_match_the_code(url: str, old: bool) -> None:
    if old:
        make_version_1(url)
    database = Database(url)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    database.close()


def test_the_audit_table_refuses_changes(url: str) -> None:
    database = Database(url)
    values = {"at_s": 1.0, "actor": "ada", "action": "submit", "outcome": "ok", "digest": "0" * 64}
    with database.writing() as connection:
        connection.execute(tables.audit.insert().values(values))
    for statement in (tables.audit.update().values(actor="eve"), tables.audit.delete()):
        with pytest.raises(Exception, match="append-only"), database.writing() as connection:
            connection.execute(statement)
    with database.reading() as connection:
        assert connection.scalar(sa.select(tables.audit.c.actor)) == "ada"
    database.close()


def test_several_processes_that_open_at_once_all_get_the_new_version(url: str) -> None:
    make_version_1(url)
    command_line = [
        sys.executable,
        "-c",
        "import sys; from service.queue.tables import Database; Database(sys.argv[1])",
        url,
    ]
    processes = [subprocess.Popen(command_line, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


DIE = """if True:
    import os, signal, sys
    from alembic import op
    from service.queue.tables import Database
    real, left = op.create_table if sys.argv[2] == "create_table" else op.execute, [1]
    def fatal(*arguments, **options):
        real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(op, sys.argv[2], fatal)
    Database(sys.argv[1])
"""


@pytest.mark.parametrize("step", ["create_table", "execute"])
def test_a_kill_during_a_migration_leaves_the_old_version_whole(url: str, step: str) -> None:
    before = make_version_1(url)
    process = subprocess.run([sys.executable, "-c", DIE, url, step], timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert rows_of(connection, None) == before
        assert connection.scalar(sa.text("SELECT version FROM about")) == 1
        assert not sa.inspect(connection).has_table("audit")
    engine.dispose()
    Database(url).close()


def test_a_newer_version_is_refused_and_the_message_says_what_to_do(url: str) -> None:
    database = Database(url)
    with database.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(UsageError, match=r"version 9999, newer than this program's .*; install the program's newer"):
        Database(url)


@pytest.mark.parametrize("damage", ["no database", "damaged page"])
def test_a_corrupt_file_is_a_separate_error(tmp_path: Path, damage: str) -> None:
    """The program does not wait for it, as it does for an unavailable server."""
    path = tmp_path / "queue.db"
    if damage == "no database":
        path.write_bytes(b"this is a text file, not a database\n" * 200)
        with pytest.raises(DatabaseCorruptError, match="restore a backup"):
            Database(f"sqlite:///{path}")
        return
    database = Database(f"sqlite:///{path}")
    database.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
        [root] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs'").fetchone()
    with open(path, "r+b") as file:
        file.seek((root - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    with pytest.raises(DatabaseCorruptError, match="restore a backup"):
        JobStore(Database(f"sqlite:///{path}")).page(Filter())


def test_a_statement_that_the_database_refuses_is_not_waited_for(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/queue.db")
    with pytest.raises(sa.exc.IntegrityError), database.writing() as connection:
        connection.execute(tables.leases.insert().values(name=None, holder=json.dumps({}), until_s=1.0))


def test_a_database_that_is_locked_for_long_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BUSY_S", 0)
    database = Database(f"sqlite:///{tmp_path}/queue.db")
    with closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailableError), database.writing():
            pass
