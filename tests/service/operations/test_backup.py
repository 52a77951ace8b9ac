"""Backup and restore: complete, private, refused if corrupt, and completed after a kill at any point."""

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
from service.operations.backup import TOKENS, backup, restore, unpack
from service.operations.restore import Layout, lock_folder
from service.queue.lease import Lease
from service.queue.requests import Check
from service.queue.store import JobStore
from service.queue.tables import Database
from service.queue.tables import jobs as jobs_table
from service.settings.service import ServiceSettings, read_service_settings
from tests.postgres import postgres

pytestmark = pytest.mark.slow

WATCHED = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "open", "sqlite3.connect")
"""Audit events before which a process is killed."""


class ServiceFolder:
    """A service's folder, all parts of which have a named state."""

    def __init__(self, storage: Path, **more: object) -> None:
        self.storage, self.private = storage, storage / "private"
        self.private.mkdir(parents=True, mode=0o700)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        values = {"storage": str(storage), "port": port} | more
        (storage / "service.yaml").write_text(yaml.safe_dump(values))
        self.settings: ServiceSettings = read_service_settings(str(storage / "service.yaml"), [])

    def write(self, state: str) -> None:
        """Set the state of all parts."""
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
        """Return the newest state of each part: a single name, unless parts are in different states."""
        database = Database(self.settings.database_url)
        with database.reading() as connection:
            owner = connection.scalar(sa.select(jobs_table.c.owner).order_by(jobs_table.c.seq.desc()).limit(1))
        database.close()
        with closing(sqlite3.connect(self.private / "mlflow.db")) as connection:
            run = connection.execute("SELECT name FROM runs ORDER BY rowid DESC LIMIT 1").fetchone()[0]
        tokens = {(self.private / name).read_text().split()[1] for name in TOKENS}
        groups = yaml.safe_load((self.storage / "service.yaml").read_text())["groups"]
        return {str(owner), str(run), *tokens, *groups}


@pytest.fixture
def service(tmp_path: Path) -> ServiceFolder:
    return ServiceFolder(tmp_path / "service")


def test_a_restore_brings_back_the_archive_and_keeps_the_replaced_files(service: ServiceFolder, tmp_path: Path) -> None:
    service.write("first")
    manifest = backup(service.settings, tmp_path / "a.tar")
    assert manifest["rows"]["jobs"] == 1
    service.write("second")
    replaced = restore(service.settings, tmp_path / "a.tar")
    assert service.read() == {"first"}
    assert replaced is not None
    assert (replaced / "ray-token").read_text() == "ray-token second"
    assert not (service.private / "restore").exists()


def test_a_restore_into_an_empty_folder_creates_the_service(service: ServiceFolder, tmp_path: Path) -> None:
    """As on a new machine."""
    service.write("first")
    backup(service.settings, tmp_path / "a.tar")
    new = ServiceSettings(storage=str(tmp_path / "new"), port=service.settings.port)
    assert restore(new, tmp_path / "a.tar") is None
    private = tmp_path / "new" / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert (private / "admin-token").read_text() == "admin-token first"
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in private.glob("*-token"))


def test_an_archive_is_private_and_replaced_atomically(service: ServiceFolder, tmp_path: Path) -> None:
    service.write("first")
    target = tmp_path / "a.tar"
    target.write_text("old")
    target.chmod(0o644)
    backup(service.settings, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "service"]


def test_a_restore_brings_back_the_users_tokens(service: ServiceFolder, tmp_path: Path) -> None:
    service.write("first")
    database = Database(service.settings.database_url)
    token, _ = Tokens(database).create("ada", "submit")
    database.close()
    backup(service.settings, tmp_path / "a.tar")
    database = Database(service.settings.database_url)
    later, _ = Tokens(database).create("ada", "submit")
    database.close()
    restore(service.settings, tmp_path / "a.tar")
    database = Database(service.settings.database_url)
    assert Tokens(database).identify(token).owner == "ada"
    with pytest.raises(NoTokenError):
        Tokens(database).identify(later)
    database.close()


def test_a_backup_during_writes_is_of_one_moment(service: ServiceFolder, tmp_path: Path) -> None:
    """A writer adds jobs in pairs, each in one transaction, so that no archive contains an odd number of them."""
    service.write("first")
    stopped, database = threading.Event(), Database(service.settings.database_url)

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
            backup(service.settings, tmp_path / f"{k}.tar")
    finally:
        stopped.set()
        writer.join()
        database.close()
    for k in range(5):
        folder = tmp_path / f"out-{k}"
        folder.mkdir()
        unpack(tmp_path / f"{k}.tar", folder)
        with closing(sqlite3.connect(folder / "queue.db")) as connection:
            assert connection.execute("SELECT count(*) FROM jobs WHERE owner = 'pair'").fetchone()[0] % 2 == 0


def test_restore_refuses_while_the_service_runs(service: ServiceFolder, tmp_path: Path) -> None:
    service.write("first")
    backup(service.settings, tmp_path / "a.tar")
    with socket.socket() as api:
        api.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        api.bind(("127.0.0.1", service.settings.port))
        api.listen()
        with pytest.raises(UsageError, match="the API runs"):
            restore(service.settings, tmp_path / "a.tar")
    with lock_folder(service.private), pytest.raises(UsageError, match="in use"):
        restore(service.settings, tmp_path / "a.tar")
    database = Database(service.settings.database_url)
    lease = Lease(database, "dispatcher", "machine-1", 60)
    assert lease.take()
    with pytest.raises(UsageError, match="dispatcher is running"):
        restore(service.settings, tmp_path / "a.tar")
    lease.give_back()
    database.close()
    restore(service.settings, tmp_path / "a.tar")


def test_the_lease_in_an_archive_does_not_hold_the_restored_service(service: ServiceFolder, tmp_path: Path) -> None:
    service.write("first")
    database = Database(service.settings.database_url)
    lease = Lease(database, "dispatcher", "machine-1", 3600)
    assert lease.take()
    backup(service.settings, tmp_path / "a.tar")
    lease.give_back()
    database.close()
    restore(service.settings, tmp_path / "a.tar")
    database = Database(service.settings.database_url)
    assert Lease(database, "dispatcher", "machine-2", 60).take()
    database.close()


def repack(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Copy an archive with changed members, and return the copy."""
    with tarfile.open(source) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(target, "w") as archive:
        for name, data in members.items():
            path = target.with_name("member")
            path.write_bytes(data)
            archive.add(path, name)
    return target


def flip_bit(members: dict[str, bytes]) -> None:
    data = bytearray(members["queue.db"])
    data[len(data) // 2] ^= 1
    members["queue.db"] = bytes(data)


def add_outside_member(members: dict[str, bytes]) -> None:
    manifest = json.loads(members["manifest.json"])
    manifest["members"]["../../evil"] = manifest["members"]["ray-token"]
    members["manifest.json"], members["../../evil"] = json.dumps(manifest).encode(), members["ray-token"]


def raise_format(members: dict[str, bytes]) -> None:
    manifest = json.loads(members["manifest.json"])
    members["manifest.json"] = json.dumps(manifest | {"format": 99}).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip_bit, "queue.db is corrupt"),
        (add_outside_member, "unknown members ../../evil"),
        (raise_format, "format 99"),
        (lambda members: members.pop("ray-token"), "ray-token"),
        (lambda members: members.pop("manifest.json"), "first member"),
        (lambda members: members.update({"queue.db": members["queue.db"][:-1]}), "its manifest says"),
    ],
)
def test_a_changed_archive_is_refused_and_nothing_changes(
    service: ServiceFolder, tmp_path: Path, change: Callable[[dict[str, bytes]], None], message: str
) -> None:
    service.write("first")
    backup(service.settings, tmp_path / "a.tar")
    service.write("second")
    with pytest.raises(UsageError, match=message):
        restore(service.settings, repack(tmp_path / "a.tar", tmp_path / "b.tar", change))
    assert service.read() == {"second"}


@pytest.mark.parametrize("data", [b"", b"hello" * 1000, b"\0" * 10240])
def test_another_file_is_refused(service: ServiceFolder, tmp_path: Path, data: bytes) -> None:
    service.write("first")
    (tmp_path / "b.tar").write_bytes(data)
    with pytest.raises(UsageError, match="not a readable archive"):
        restore(service.settings, tmp_path / "b.tar")


def test_tables_of_a_newer_program_are_refused(service: ServiceFolder, tmp_path: Path) -> None:
    service.write("first")
    with closing(sqlite3.connect(service.private / "queue.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    backup(service.settings, tmp_path / "a.tar")
    (service.private / "queue.db").unlink()
    with pytest.raises(UsageError, match="9999"):
        restore(service.settings, tmp_path / "a.tar")


def test_without_a_database_there_is_nothing_to_back_up(service: ServiceFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no database"):
        backup(service.settings, tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()
    assert not (service.private / "queue.db").exists()


def run_in_child(action: Callable[[], object], die_at: int) -> tuple[int, int]:
    """Run an action in a forked process that is killed before its Nth operation on files.

    Args:
        action: the action.
        die_at: number of the operation, from 1; 0: the process is not killed.

    Returns:
        The exit status or, negative, the signal; and the number of operations that were started.
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
    _, wait_status = os.waitpid(pid, 0)
    with open(reading, "rb") as pipe:
        count_text = pipe.read()
    return os.waitstatus_to_exitcode(wait_status), int(count_text or 0)


def choose_points(total: int, num: int) -> list[int]:
    """Return operations before which to kill a process, among them the first and the last."""
    assert total > 10
    return sorted({1, 2, total, *random.Random(1).sample(range(1, total + 1), num)})


@pytest.mark.slow
def test_a_backup_that_is_killed_leaves_the_old_archive_or_the_new_one(service: ServiceFolder, tmp_path: Path) -> None:
    service.write("first")
    target = tmp_path / "a.tar"
    backup(service.settings, target)
    service.write("second")
    status, total = run_in_child(lambda: backup(service.settings, tmp_path / "other.tar"), 0)
    assert status == 0
    for k in choose_points(total, 15):
        status, _ = run_in_child(lambda: backup(service.settings, target), k)
        assert status == -signal.SIGKILL
        folder = tmp_path / "out"
        folder.mkdir()
        unpack(target, folder)
        assert (folder / "ray-token").read_text().split()[1] in ("first", "second")
        shutil.rmtree(folder)
        assert service.read() == {"second"}
    backup(service.settings, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "other.tar", "service"]


@pytest.mark.slow
def test_a_restore_that_is_killed_is_completed_by_the_same_command(service: ServiceFolder, tmp_path: Path) -> None:
    service.write("first")
    backup(service.settings, tmp_path / "a.tar")
    service.write("second")
    backup(service.settings, tmp_path / "b.tar")
    status, total = run_in_child(lambda: restore(service.settings, tmp_path / "b.tar"), 0)
    assert status == 0
    for k in choose_points(total, 20):
        assert service.read() == {"second"}
        status, _ = run_in_child(lambda: restore(service.settings, tmp_path / "a.tar"), k)
        assert status == -signal.SIGKILL
        restore(service.settings, tmp_path / "a.tar")
        assert service.read() == {"first"}
        assert not (service.private / "restore").exists()
        restore(service.settings, tmp_path / "b.tar")


@pytest.mark.slow
def test_after_a_killed_restore_the_service_has_all_of_the_old_state_or_of_the_new(
    service: ServiceFolder, tmp_path: Path
) -> None:
    """Even if nobody repeats the command: the next start completes it, and no part opens a mixed database."""
    service.write("first")
    backup(service.settings, tmp_path / "a.tar")
    service.write("second")
    backup(service.settings, tmp_path / "b.tar")
    _, total = run_in_child(lambda: restore(service.settings, tmp_path / "b.tar"), 0)
    states = set()
    for k in choose_points(total, 20):
        run_in_child(lambda: restore(service.settings, tmp_path / "a.tar"), k)
        if (service.private / "restore" / "journal.json").exists():
            with pytest.raises(UsageError, match="interrupted"):
                Database(service.settings.database_url)
            assert Layout(service.storage).finish_interrupted()
        [state] = service.read()
        states.add(state)
        restore(service.settings, tmp_path / "b.tar")
    assert states == {"first", "second"}


@pytest.mark.slow
def test_a_backup_of_postgres_is_restored(tmp_path: Path) -> None:
    """Rows are written to the same kind of archive, and restored in one transaction; later rows get higher numbers."""
    with postgres() as server:
        service = ServiceFolder(tmp_path / "service", database=server.url)
        service.write("first")
        database = Database(server.url)
        with database.writing() as connection:
            values = "(1, 'ada', 'x', 'ok', 'd')"
            connection.execute(sa.text(f"INSERT INTO audit (at_s, actor, action, outcome, digest) VALUES {values}"))
        backup(service.settings, tmp_path / "a.tar")
        service.write("second")
        replaced = restore(service.settings, tmp_path / "a.tar")
        assert service.read() == {"first"}
        assert replaced is not None
        with closing(sqlite3.connect(replaced / "queue.db")) as connection:
            assert connection.execute("SELECT count(*) FROM jobs").fetchone()[0] == 2
        service.write("third")
        assert service.read() == {"third"}
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM audit"))
        database.close()
