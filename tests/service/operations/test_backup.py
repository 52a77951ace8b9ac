"""Backup and restore: whole, private, refused when damaged, and completed after a kill at any point."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import stat
import sys
import tarfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml

from service.api.errors import NoTokenError
from service.api.tokens import Tokens
from service.errors import UsageError
from service.operations import backup as module
from service.operations.backup import backup, restore
from service.operations.restore import Layout, lock_folder
from service.queue.lease import Lease
from service.queue.requests import Check
from service.queue.store import JobStore
from service.queue.tables import Database
from service.queue.tables import jobs as jobs_table
from service.settings.service import ServiceSettings, service_settings
from tests.postgres import postgres

pytestmark = pytest.mark.slow

WATCHED = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "open", "sqlite3.connect")
"""Operations before which a process is killed."""


class Own:
    """A service's folder, with a state that has a name."""

    def __init__(self, storage: Path, **more: object) -> None:
        self.storage, self.private = storage, storage / "private"
        self.private.mkdir(parents=True, mode=0o700)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        values = {"storage": str(storage), "port": port} | more
        (storage / "service.yaml").write_text(yaml.safe_dump(values))
        self.settings: ServiceSettings = service_settings(str(storage / "service.yaml"), [])

    def write(self, state: str) -> None:
        """Bring all parts to a state."""
        database = Database(self.settings.database_url)
        JobStore(database).add(Check(manifest=f"/{state}.csv"), state, max_attempts=1)
        database.close()
        with closing(sqlite3.connect(self.private / "mlflow.db")) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS runs (name TEXT)")
            connection.execute("INSERT INTO runs VALUES (?)", (state,))
            connection.commit()
        for name in ("ray-token", "mlflow-token", "admin-token"):
            (self.private / name).write_text(f"{name} {state}")
        values = yaml.safe_load((self.storage / "service.yaml").read_text()) | {"groups": {state: ["ada"]}}
        (self.storage / "service.yaml").write_text(yaml.safe_dump(values))

    def read(self) -> set[str]:
        """The newest state of each part: one name, unless parts are of different states."""
        database = Database(self.settings.database_url)
        with database.reading() as connection:
            owner = connection.scalar(sa.select(jobs_table.c.owner).order_by(jobs_table.c.seq.desc()).limit(1))
        database.close()
        with closing(sqlite3.connect(self.private / "mlflow.db")) as connection:
            run = connection.execute("SELECT name FROM runs ORDER BY rowid DESC LIMIT 1").fetchone()[0]
        tokens = {(self.private / name).read_text().split()[1] for name in module.TOKENS}
        groups = yaml.safe_load((self.storage / "service.yaml").read_text())["groups"]
        return {str(owner), str(run), *tokens, *groups}


@pytest.fixture
def own(tmp_path: Path) -> Own:
    return Own(tmp_path / "service")


def test_a_restore_brings_back_the_archive_and_keeps_the_replaced_files(own: Own, tmp_path: Path) -> None:
    own.write("first")
    manifest = backup(own.settings, tmp_path / "a.tar")
    assert manifest["rows"]["jobs"] == 1
    own.write("second")
    replaced = restore(own.settings, tmp_path / "a.tar")
    assert own.read() == {"first"}
    assert replaced is not None
    assert (replaced / "ray-token").read_text() == "ray-token second"
    assert not (own.private / "restore").exists()


def test_a_restore_into_an_empty_folder_creates_the_service(own: Own, tmp_path: Path) -> None:
    """As on a new machine."""
    own.write("first")
    backup(own.settings, tmp_path / "a.tar")
    new = ServiceSettings(storage=str(tmp_path / "new"), port=own.settings.port)
    assert restore(new, tmp_path / "a.tar") is None
    private = tmp_path / "new" / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert (private / "admin-token").read_text() == "admin-token first"
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in private.glob("*-token"))


def test_an_archive_is_private_and_replaced_atomically(own: Own, tmp_path: Path) -> None:
    own.write("first")
    target = tmp_path / "a.tar"
    target.write_text("old")
    target.chmod(0o644)
    backup(own.settings, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "service"]


def test_a_restore_brings_back_the_users_tokens(own: Own, tmp_path: Path) -> None:
    own.write("first")
    database = Database(own.settings.database_url)
    token, _ = Tokens(database).create("ada", "submit")
    database.close()
    backup(own.settings, tmp_path / "a.tar")
    database = Database(own.settings.database_url)
    later, _ = Tokens(database).create("ada", "submit")
    database.close()
    restore(own.settings, tmp_path / "a.tar")
    database = Database(own.settings.database_url)
    assert Tokens(database).identify(token).owner == "ada"
    with pytest.raises(NoTokenError):
        Tokens(database).identify(later)
    database.close()


def test_a_backup_during_writes_is_of_one_moment(own: Own, tmp_path: Path) -> None:
    """A writer adds two jobs in each transaction: no archive has an odd number."""
    own.write("first")
    stopped, database = threading.Event(), Database(own.settings.database_url)

    def write() -> None:
        store, k = JobStore(database), 0
        while not stopped.is_set():
            for part in ("a", "b"):
                store.add(Check(manifest=f"/{k}{part}.csv"), "ada", max_attempts=1)
            with database.writing() as connection:
                pair = sa.select(jobs_table).where(jobs_table.c.owner == "ada").limit(1)
                row = dict(connection.execute(pair).mappings().one())
                for part in ("c", "d"):
                    values = {k: v for k, v in row.items() if k != "seq"} | {"id": f"x-{k}{part}", "owner": "pair"}
                    connection.execute(jobs_table.insert().values(values | {"idempotency_key": None}))
            k += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for k in range(5):
            backup(own.settings, tmp_path / f"{k}.tar")
    finally:
        stopped.set()
        writer.join()
        database.close()
    for k in range(5):
        folder = tmp_path / f"out-{k}"
        folder.mkdir()
        module.unpack(tmp_path / f"{k}.tar", folder)
        with closing(sqlite3.connect(folder / "queue.db")) as connection:
            assert connection.execute("SELECT count(*) FROM jobs WHERE owner = 'pair'").fetchone()[0] % 2 == 0


def test_restore_refuses_while_the_service_runs(own: Own, tmp_path: Path) -> None:
    own.write("first")
    backup(own.settings, tmp_path / "a.tar")
    with socket.socket() as api:
        api.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        api.bind(("127.0.0.1", own.settings.port))
        api.listen()
        with pytest.raises(UsageError, match="the API runs"):
            restore(own.settings, tmp_path / "a.tar")
    with lock_folder(own.private), pytest.raises(UsageError, match="in use"):
        restore(own.settings, tmp_path / "a.tar")
    database = Database(own.settings.database_url)
    lease = Lease(database, "dispatcher", "machine-1", 60)
    assert lease.take()
    with pytest.raises(UsageError, match="dispatcher is running"):
        restore(own.settings, tmp_path / "a.tar")
    lease.give_back()
    database.close()
    restore(own.settings, tmp_path / "a.tar")


def test_the_lease_in_an_archive_does_not_hold_the_restored_service(own: Own, tmp_path: Path) -> None:
    own.write("first")
    database = Database(own.settings.database_url)
    lease = Lease(database, "dispatcher", "machine-1", 3600)
    assert lease.take()
    backup(own.settings, tmp_path / "a.tar")
    lease.give_back()
    database.close()
    restore(own.settings, tmp_path / "a.tar")
    database = Database(own.settings.database_url)
    assert Lease(database, "dispatcher", "machine-2", 60).take()
    database.close()


def repacked(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """An archive with its members changed."""
    with tarfile.open(source) as archive:
        members = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(target, "w") as archive:
        for name, data in members.items():
            path = target.with_name("member")
            path.write_bytes(data)
            archive.add(path, name)
    return target


def flip(members: dict[str, bytes]) -> None:
    data = bytearray(members["queue.db"])
    data[len(data) // 2] ^= 1
    members["queue.db"] = bytes(data)


def outside(members: dict[str, bytes]) -> None:
    manifest = json.loads(members["manifest.json"])
    manifest["members"]["../../evil"] = manifest["members"]["ray-token"]
    members["manifest.json"], members["../../evil"] = json.dumps(manifest).encode(), members["ray-token"]


def newer(members: dict[str, bytes]) -> None:
    manifest = json.loads(members["manifest.json"])
    members["manifest.json"] = json.dumps(manifest | {"format": 99}).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, "queue.db is corrupt"),
        (outside, "unknown members ../../evil"),
        (newer, "format 99"),
        (lambda members: members.pop("ray-token"), "ray-token"),
        (lambda members: members.pop("manifest.json"), "first member"),
        (lambda members: members.update({"queue.db": members["queue.db"][:-1]}), "its manifest says"),
    ],
)
def test_a_changed_archive_is_refused_and_nothing_changes(
    own: Own, tmp_path: Path, change: Callable[[dict[str, bytes]], None], message: str
) -> None:
    own.write("first")
    backup(own.settings, tmp_path / "a.tar")
    own.write("second")
    with pytest.raises(UsageError, match=message):
        restore(own.settings, repacked(tmp_path / "a.tar", tmp_path / "b.tar", change))
    assert own.read() == {"second"}


@pytest.mark.parametrize("data", [b"", b"hello" * 1000, b"\0" * 10240])
def test_another_file_is_refused(own: Own, tmp_path: Path, data: bytes) -> None:
    own.write("first")
    (tmp_path / "b.tar").write_bytes(data)
    with pytest.raises(UsageError, match="not a readable archive"):
        restore(own.settings, tmp_path / "b.tar")


def test_tables_of_a_newer_program_are_refused(own: Own, tmp_path: Path) -> None:
    own.write("first")
    with closing(sqlite3.connect(own.private / "queue.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    backup(own.settings, tmp_path / "a.tar")
    (own.private / "queue.db").unlink()
    with pytest.raises(UsageError, match="9999"):
        restore(own.settings, tmp_path / "a.tar")


def test_without_a_database_there_is_nothing_to_back_up(own: Own, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no database"):
        backup(own.settings, tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()
    assert not (own.private / "queue.db").exists()


def in_child(action: Callable[[], object], die_at: int) -> tuple[int, int]:
    """Run an action in a forked process that is killed before its Nth operation on files.

    Returns:
        Exit status or, negative, signal; and how many operations it came to.
    """
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event not in WATCHED or (event == "open" and not int(arguments[2]) & (os.O_WRONLY | os.O_RDWR)):  # type: ignore[call-overload]
                return
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(hook)
            action()
            status = 0
        finally:
            os.write(writing, str(count).encode())
            os._exit(status)
    os.close(writing)
    _, how = os.waitpid(pid, 0)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(how), int(said or 0)


def points(total: int, num: int) -> list[int]:
    """Operations at which to kill, the first and last among them."""
    assert total > 10
    return sorted({1, 2, total, *random.Random(1).sample(range(1, total + 1), num)})


@pytest.mark.slow
def test_a_backup_that_is_killed_leaves_the_old_archive_or_the_new_one(own: Own, tmp_path: Path) -> None:
    own.write("first")
    target = tmp_path / "a.tar"
    backup(own.settings, target)
    own.write("second")
    status, total = in_child(lambda: backup(own.settings, tmp_path / "other.tar"), 0)
    assert status == 0
    for k in points(total, 15):
        status, _ = in_child(lambda: backup(own.settings, target), k)
        assert status == -signal.SIGKILL
        folder = tmp_path / "out"
        folder.mkdir()
        module.unpack(target, folder)
        assert (folder / "ray-token").read_text().split()[1] in ("first", "second")
        shutil.rmtree(folder)
        assert own.read() == {"second"}
    backup(own.settings, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "other.tar", "service"]


@pytest.mark.slow
def test_a_restore_that_is_killed_is_completed_by_the_same_command(own: Own, tmp_path: Path) -> None:
    own.write("first")
    backup(own.settings, tmp_path / "a.tar")
    own.write("second")
    backup(own.settings, tmp_path / "b.tar")
    status, total = in_child(lambda: restore(own.settings, tmp_path / "b.tar"), 0)
    assert status == 0
    for k in points(total, 20):
        assert own.read() == {"second"}
        status, _ = in_child(lambda: restore(own.settings, tmp_path / "a.tar"), k)
        assert status == -signal.SIGKILL
        restore(own.settings, tmp_path / "a.tar")
        assert own.read() == {"first"}
        assert not (own.private / "restore").exists()
        restore(own.settings, tmp_path / "b.tar")


@pytest.mark.slow
def test_after_a_killed_restore_the_service_has_all_of_the_old_state_or_of_the_new(own: Own, tmp_path: Path) -> None:
    """Also where nobody repeats the command: the start completes it, and no part opens a database of both."""
    own.write("first")
    backup(own.settings, tmp_path / "a.tar")
    own.write("second")
    backup(own.settings, tmp_path / "b.tar")
    _, total = in_child(lambda: restore(own.settings, tmp_path / "b.tar"), 0)
    seen = set()
    for k in points(total, 20):
        in_child(lambda: restore(own.settings, tmp_path / "a.tar"), k)
        if (own.private / "restore" / "journal.json").exists():
            with pytest.raises(UsageError, match="interrupted"):
                Database(own.settings.database_url)
            assert Layout(own.storage).finish_interrupted()
        [state] = own.read()
        seen.add(state)
        restore(own.settings, tmp_path / "b.tar")
    assert seen == {"first", "second"}


@pytest.mark.slow
def test_a_backup_of_postgres_is_restored(tmp_path: Path) -> None:
    """Rows go into the same kind of archive, and back in one transaction; new rows follow the restored ones."""
    with postgres() as server:
        own = Own(tmp_path / "service", database=server.url)
        own.write("first")
        database = Database(server.url)
        with database.writing() as connection:
            values = "(1, 'ada', 'x', 'ok', 'd')"
            connection.execute(sa.text(f"INSERT INTO audit (at_s, actor, action, outcome, digest) VALUES {values}"))
        backup(own.settings, tmp_path / "a.tar")
        own.write("second")
        replaced = restore(own.settings, tmp_path / "a.tar")
        assert own.read() == {"first"}
        assert replaced is not None
        with closing(sqlite3.connect(replaced / "queue.db")) as connection:
            assert connection.execute("SELECT count(*) FROM jobs").fetchone()[0] == 2
        own.write("third")
        assert own.read() == {"third"}
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM audit"))
        database.close()
