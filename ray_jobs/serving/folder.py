"""The folder of `magnet serve`: settings that outlast restarts, and secrets that only their owner can read.

STORAGE                 mode 700
STORAGE/service.yaml    settings, without secrets; they may be edited
STORAGE/users           files of jobs, by user
STORAGE/artifacts       artifacts of MLflow's runs
STORAGE/private         mode 700; no job may use it
    queue.db, mlflow.db, ray-token, mlflow-token, admin-token, logs/
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.api.errors import NoTokenError
from service.api.tokens import Tokens
from service.errors import UsageError
from service.queue.tables import Database
from service.settings.service import ServiceSettings

TEMPORARY_PREFIX = "magnet-ray-"
"""Start of the names of Ray's folders in /tmp."""
SECRETS = ("ray-token", "mlflow-token", "admin-token", "queue.db", "queue.db-workflows", "mlflow.db")
"""Files that older versions kept in STORAGE itself."""
DATABASE_SUFFIXES = ("", "-wal", "-shm")
"""Suffixes of the files of an SQLite database."""


def prepare_folder(storage: Path) -> Path:
    """Create the folder and its private part, and close both to other users.

    Args:
        storage: the folder.

    Returns:
        The private part.

    Raises:
        UsageError: one of them belongs to another user, or is not a folder.
    """
    storage.mkdir(parents=True, exist_ok=True, mode=0o700)
    private = storage / "private"
    private.mkdir(exist_ok=True, mode=0o700)
    for folder in (storage, private):
        _require_own(folder)
        # mkdir leaves the mode of an existing folder as it is.
        folder.chmod(0o700)
    (private / "logs").mkdir(exist_ok=True)
    for name in SECRETS:
        for suffix in DATABASE_SUFFIXES:
            old, new = storage / f"{name}{suffix}", private / f"{name}{suffix}"
            if old.is_file() and not new.exists():
                old.rename(new)
            if new.is_file():
                new.chmod(0o600)
    return private


@contextmanager
def make_temporary_folder(private: Path) -> Iterator[Path]:
    """Create a folder for Ray's sockets and logs while the context lasts; remove one that an earlier start left.

    The folder is in /tmp, since the path of a Unix socket has at most 107 bytes. Without its own folder, a cluster
    writes its address into Ray's default folder, where the next cluster on this machine overwrites it, and jobs go to
    that cluster. Ray sets the folder's mode to 777, so it gets a folder inside a closed one.

    Args:
        private: private part of the storage folder, which records the folder's path.
    """
    record = private / "ray-folder"
    if record.is_file():
        _remove(Path(record.read_text().strip()))
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir="/tmp"))  # mode 700
    record.write_text(str(folder))
    try:
        yield folder / "r"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        record.unlink(missing_ok=True)


def read_or_create_secret(path: Path) -> str:
    """Return the secret in a file; if the file does not exist, create it with a random secret."""
    if not path.exists():
        write_secret(path, secrets.token_hex(32))
    return path.read_text().strip()


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can ever read; a reader sees the old content or the new, never a part."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    # O_EXCL: the file must be new, and not one that another user has prepared.
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def find_own_token(settings: ServiceSettings, file: Path) -> str:
    """Return an administrator's token of the user who started the service.

    Args:
        settings: service settings.
        file: file with the token of earlier starts; a new token is created if there is none, or if it has ended.
    """
    database = Database(settings.database_url)
    try:
        if file.exists():
            try:
                Tokens(database).identify(token := file.read_text().strip())
                return token
            except NoTokenError:
                print(f"the token in {file} has expired or was revoked; created a new one", flush=True)
        token, _ = Tokens(database).create(getpass.getuser(), "admin")
    finally:
        database.close()
    write_secret(file, token)
    return token


def _require_own(folder: Path) -> None:
    # lstat: a link could lead to a folder that another user controls.
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UsageError(
            f"{folder} is a link, a file or another user's folder; name a folder that belongs to you with --storage"
        )


def _remove(folder: Path) -> None:
    """Remove a temporary folder of an earlier start, and nothing else: the recorded path may have been edited."""
    if folder.parent == Path("/tmp") and folder.name.startswith(TEMPORARY_PREFIX) and folder.is_dir():
        _require_own(folder)
        shutil.rmtree(folder, ignore_errors=True)
