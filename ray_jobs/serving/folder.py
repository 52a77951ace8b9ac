"""The folder of `magnet serve`: settings that last over restarts, secrets that nobody else reads.

STORAGE                 mode 700
STORAGE/service.yaml    settings, without secrets; they may be edited
STORAGE/users           what jobs leave behind, by user
STORAGE/artifacts       of MLflow's runs
STORAGE/private         mode 700; no job may name it
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

from service.api.access import NoTokenError, Tokens
from service.errors import UsageError
from service.queue.tables import Database
from service.settings.service import ServiceSettings

TEMPORARY = "magnet-ray-"
"""Beginning of the names of Ray's folders in /tmp."""
SECRETS = ("ray-token", "mlflow-token", "admin-token", "queue.db", "queue.db-workflows", "mlflow.db")
"""Files that older versions kept in STORAGE itself."""
PARTS_OF_A_DATABASE = ("", "-wal", "-shm")


def prepare(storage: Path) -> Path:
    """Make the folder and its private part, and close them to others.

    Returns:
        The private part.

    Raises:
        UsageError: one of them is another user's, or no folder.
    """
    storage.mkdir(parents=True, exist_ok=True, mode=0o700)
    private = storage / "private"
    private.mkdir(exist_ok=True, mode=0o700)
    for folder in (storage, private):
        _require_own(folder)
        folder.chmod(0o700)
    (private / "logs").mkdir(exist_ok=True)
    for name in SECRETS:
        for ending in PARTS_OF_A_DATABASE:
            old, new = storage / f"{name}{ending}", private / f"{name}{ending}"
            if old.is_file() and not new.exists():
                old.rename(new)
            if new.is_file():
                new.chmod(0o600)
    return private


@contextmanager
def temporary_folder(private: Path) -> Iterator[Path]:
    """A folder for Ray's sockets and logs while the context lasts; one that an earlier start left is removed.

    It lies in /tmp, since the path of a Unix socket has at most 107 bytes. Without a folder of its own a cluster writes
    its address into Ray's default folder, where the next cluster of this machine overwrites it, and jobs go there. Ray
    opens the folder that it is given to everybody (mode 777), so it is given one inside a closed one.
    """
    note = private / "ray-folder"
    if note.is_file():
        _remove(Path(note.read_text().strip()))
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir="/tmp"))  # mode 700
    note.write_text(str(folder))
    try:
        yield folder / "r"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        note.unlink(missing_ok=True)


def secret(path: Path) -> str:
    """A random secret that is kept in a file."""
    if not path.exists():
        write_secret(path, secrets.token_hex(32))
    return path.read_text().strip()


def write_secret(path: Path, text: str) -> None:
    """Write a file that nobody else can read, from its first byte on; there is always a whole one."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def own_token(settings: ServiceSettings, file: Path) -> str:
    """The administrator's token of the user who started the service: the kept one while it is valid, else a new one."""
    database = Database(settings.database_url)
    try:
        if file.exists():
            try:
                Tokens(database).caller(token := file.read_text().strip())
                return token
            except NoTokenError:
                print(f"the token in {file} has ended; made another one", flush=True)
        token, _ = Tokens(database).new(getpass.getuser(), "admin")
    finally:
        database.close()
    write_secret(file, token)
    return token


def _require_own(folder: Path) -> None:
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        raise UsageError(f"{folder} is a link, a file or another user's; name a folder of your own with --storage")


def _remove(folder: Path) -> None:
    """Remove a temporary folder of ours; anything else is left alone."""
    if folder.parent == Path("/tmp") and folder.name.startswith(TEMPORARY) and folder.is_dir():
        _require_own(folder)
        shutil.rmtree(folder, ignore_errors=True)
