"""The last part of a restore: files change places by a journal, so that a kill in between is completed later.

private/restore/new/NAME           whole, checked files that are to take their places
private/restore/journal.json       written last, once all of them are there: from here on there is no way back
private/replaced-DATE/NAME         what was in their places
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout

from service.errors import UsageError
from service.operations import snapshots
from service.queue.tables import Database, leases
from service.settings.service import ServiceSettings

JOURNAL = "journal.json"
COMPANIONS = {
    "queue.db": ("-wal", "-shm", "-workflows", "-workflows-wal", "-workflows-shm"),
    "mlflow.db": ("-wal", "-shm", "-journal"),
}
"""Files beside a database that belong to its old state; SQLite would apply an old log to a new file."""
PATIENCE_S = 1.0
"""Seconds for a connection to the API's port."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Places in a storage folder."""

    storage: Path

    @classmethod
    def of(cls, settings: ServiceSettings) -> Layout | None:
        """Those of a service; None where its storage is no folder."""
        return None if "://" in settings.storage else cls(Path(settings.storage))

    @property
    def private(self) -> Path:
        """Folder of the secrets."""
        return self.storage / "private"

    @property
    def work(self) -> Path:
        """Folder of a restore under way."""
        return self.private / "restore"

    def destination(self, name: str) -> Path:
        """Where a member of an archive belongs."""
        return (self.storage if name == "service.yaml" else self.private) / name

    def finish_interrupted(self) -> bool:
        """Complete a restore that was killed after its journal was written; whether there was one."""
        journal = self.work / JOURNAL
        if not journal.is_file():
            return False
        about = json.loads(journal.read_text())
        if about["database"] is not None:
            _replace_rows(about["database"], self.work / "new" / "queue.db", self.private / about["aside"])
        for name in about["names"]:
            self._place(name, self.work / "new" / name, self.private / about["aside"])
        _sync(self.private)
        _sync(self.storage)
        journal.unlink()
        shutil.rmtree(self.work)
        return True

    def _place(self, name: str, staged: Path, aside: Path) -> None:
        """Exchange one file. Where the new one has gone to its place, a kill came later, and nothing is left to do."""
        if not staged.exists():
            return
        destination = self.destination(name)
        for ending in (*COMPANIONS.get(name, ()), ""):
            old = destination.with_name(destination.name + ending)
            if old.exists():
                aside.mkdir(mode=0o700, exist_ok=True)
                old.replace(aside / old.name)
        staged.replace(destination)


@contextmanager
def locked(private: Path) -> Iterator[None]:
    """Hold a storage folder while the context lasts.

    Raises:
        UsageError: another process holds it.
    """
    lock = FileLock(private / "lock", timeout=0, fallback_to_soft=False)  # the kernel frees it if the process is killed
    try:
        hold = lock.acquire()
    except Timeout as error:
        raise UsageError(f"{private.parent} is in use by another `magnet serve` or restore") from error
    with hold:
        yield


def require_stopped(settings: ServiceSettings) -> None:
    """Refuse while parts of the service are at work.

    Raises:
        UsageError: its API answers, or a dispatcher holds the lease.
    """
    try:
        socket.create_connection((settings.host, settings.port), timeout=PATIENCE_S).close()
    except OSError:
        pass
    else:
        raise UsageError(f"the API runs on port {settings.port}; stop the service first")
    url = sa.make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        layout = Layout.of(settings)
        if not Path(str(url.database)).exists() or (layout is not None and (layout.work / JOURNAL).exists()):
            return
    database = Database(settings.database_url)
    try:
        with database.reading() as connection:
            holder = connection.scalar(sa.select(leases.c.holder).where(leases.c.until_s > time.time()))
    finally:
        database.close()
    if holder is not None:
        raise UsageError(f"a dispatcher is at work ({holder}); stop it, and wait {settings.lease_s:g} s")


def switch(settings: ServiceSettings, layout: Layout | None, folder: Path, work: Path) -> Path | None:
    """Let checked files take their places.

    Args:
        settings: of the service.
        layout: of its storage folder; None: only the queue's rows are replaced.
        folder: the checked files.
        work: where the journal is written.

    Returns:
        The folder with what was replaced; None where nothing was.
    """
    in_postgres = sa.make_url(settings.database_url).get_backend_name() != "sqlite"
    name = time.strftime("replaced-%Y%m%d-%H%M%S", time.gmtime())
    if layout is None:
        _replace_rows(settings.database_url, folder / "queue.db", aside := work.with_name(f"{work.name}-{name}"))
        return aside
    names = [path.name for path in sorted(folder.iterdir()) if not (in_postgres and path.name == "queue.db")]
    about = {"names": names, "aside": name, "database": settings.database_url if in_postgres else None}
    _sync(folder)
    new = work / f".{JOURNAL}"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(json.dumps(about))
        file.flush()
        os.fsync(file.fileno())
    new.replace(work / JOURNAL)
    _sync(work)
    layout.finish_interrupted()
    aside = layout.private / name
    return aside if aside.exists() else None


def _replace_rows(database_url: str, source: Path, aside: Path) -> None:
    """In Postgres: keep the rows that are there, then replace them in one transaction."""
    aside.mkdir(mode=0o700, exist_ok=True, parents=True)
    if not (kept := aside / "queue.db").exists():
        new = aside / ".queue.db.new"
        new.unlink(missing_ok=True)
        snapshots.take(database_url, new)
        new.replace(kept)
    snapshots.replace_rows(database_url, source)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
