"""Last step of a restore: files are exchanged by a journal, so that an interrupted restore can be completed.

private/restore/new/NAME           the new files, complete and checked
private/restore/journal.json       written once all of them exist: from then on the restore is completed, never undone
private/replaced-DATE/NAME         the files that were replaced
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
"""Suffixes of a database's companion files. They are replaced with it: SQLite would apply an old log to a new file."""
PATIENCE_S = 1.0
"""Seconds to wait for a connection to the API's port."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Locations of files in a storage folder."""

    storage: Path
    """The storage folder."""

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> Layout | None:
        """Return the layout of a service's storage; None: the storage is an object store."""
        return None if "://" in settings.storage else cls(Path(settings.storage))

    @property
    def private(self) -> Path:
        """Folder of databases and secrets."""
        return self.storage / "private"

    @property
    def work(self) -> Path:
        """Working folder of a restore."""
        return self.private / "restore"

    def locate(self, name: str) -> Path:
        """Return the path of an archive member in the storage folder."""
        return (self.storage if name == "service.yaml" else self.private) / name

    def finish_interrupted(self) -> bool:
        """Complete a restore that was interrupted after its journal was written; return whether there was one."""
        journal = self.work / JOURNAL
        if not journal.is_file():
            return False
        plan = json.loads(journal.read_text())
        if plan["database"] is not None:
            _replace_rows(plan["database"], self.work / "new" / "queue.db", self.private / plan["aside"])
        for name in plan["names"]:
            self._exchange(name, self.work / "new" / name, self.private / plan["aside"])
        # The journal must outlive the exchange on disk, or a power failure could lose both.
        _sync(self.private)
        _sync(self.storage)
        journal.unlink()
        shutil.rmtree(self.work)
        return True

    def _exchange(self, name: str, staged: Path, aside: Path) -> None:
        """Move an old file and its companions aside, and the staged file into its place."""
        if not staged.exists():
            return  # an interrupted run has exchanged this file already
        destination = self.locate(name)
        for ending in (*COMPANIONS.get(name, ()), ""):
            old = destination.with_name(destination.name + ending)
            if old.exists():
                aside.mkdir(mode=0o700, exist_ok=True)
                old.replace(aside / old.name)
        staged.replace(destination)


@contextmanager
def lock_folder(private: Path) -> Iterator[None]:
    """Lock a storage folder while the context lasts.

    Args:
        private: the folder's private part, which contains the lock.

    Raises:
        UsageError: another process has locked it.
    """
    lock = FileLock(private / "lock", timeout=0, fallback_to_soft=False)  # the kernel frees it if the process is killed
    try:
        hold = lock.acquire()
    except Timeout as error:
        raise UsageError(f"{private.parent} is in use by another `magnet serve` or restore; stop it first") from error
    with hold:
        yield


def require_stopped(settings: ServiceSettings) -> None:
    """Refuse to continue while a part of the service runs.

    Args:
        settings: service settings.

    Raises:
        UsageError: the API accepts connections, or a dispatcher holds the lease.
    """
    try:
        # The API holds no lease; its port is the only sign of it.
        socket.create_connection((settings.host, settings.port), timeout=PATIENCE_S).close()
    except OSError:
        pass
    else:
        raise UsageError(f"the API runs on port {settings.port}; stop the service first")
    url = sa.make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        layout = Layout.from_settings(settings)
        # A database that an interrupted restore left must not be opened; the restore replaces it anyway.
        if not Path(str(url.database)).exists() or (layout is not None and (layout.work / JOURNAL).exists()):
            return
    database = Database(settings.database_url)
    try:
        with database.reading() as connection:
            holder = connection.scalar(sa.select(leases.c.holder).where(leases.c.until_s > time.time()))
    finally:
        database.close()
    if holder is not None:
        raise UsageError(
            f"a dispatcher is running ({holder}); stop it, and wait {settings.lease_s:g} s until its lease ends"
        )


def exchange_files(settings: ServiceSettings, layout: Layout | None, folder: Path, work: Path) -> Path | None:
    """Replace the service's files by checked new ones.

    Args:
        settings: service settings.
        layout: layout of the storage folder; None: only the queue's rows are replaced.
        folder: folder of the new files.
        work: working folder, in which the journal is written.

    Returns:
        The folder with the replaced files; None: nothing was replaced.
    """
    in_postgres = sa.make_url(settings.database_url).get_backend_name() != "sqlite"
    name = time.strftime("replaced-%Y%m%d-%H%M%S", time.gmtime())
    if layout is None:
        _replace_rows(settings.database_url, folder / "queue.db", aside := work.with_name(f"{work.name}-{name}"))
        return aside
    names = [path.name for path in sorted(folder.iterdir()) if not (in_postgres and path.name == "queue.db")]
    plan = {"names": names, "aside": name, "database": settings.database_url if in_postgres else None}
    # The new files must be on disk before the journal says that they are complete.
    _sync(folder)
    new = work / f".{JOURNAL}"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(json.dumps(plan))
        file.flush()
        os.fsync(file.fileno())
    new.replace(work / JOURNAL)
    _sync(work)
    layout.finish_interrupted()
    aside = layout.private / name
    return aside if aside.exists() else None


def _replace_rows(database_url: str, source: Path, aside: Path) -> None:
    """Save the queue's rows in Postgres, then replace them in one transaction.

    Args:
        database_url: URL of the Postgres database.
        source: SQLite file with the new rows.
        aside: folder for a snapshot of the old rows.
    """
    aside.mkdir(mode=0o700, exist_ok=True, parents=True)
    # After an interruption the snapshot exists, and the database may hold the new rows already.
    if not (kept := aside / "queue.db").exists():
        new = aside / ".queue.db.new"
        new.unlink(missing_ok=True)
        snapshots.take_snapshot(database_url, new)
        new.replace(kept)
    snapshots.replace_rows(database_url, source)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
