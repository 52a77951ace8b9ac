"""Backup and restore of a service: its queue, MLflow's file, secrets and settings, in one archive.

    magnet backup  --config service.yaml OUT.tar       while the service runs
    magnet restore --config service.yaml IN.tar        while it is stopped

An archive contains `queue.db` (the queue's tables as SQLite, even if they are in Postgres) and, from the storage folder
of `magnet serve`, `service.yaml`, `mlflow.db` and the tokens, each with its SHA-256 in `manifest.json`. It contains no
results, slides or artifacts, and no workflows of DBOS: the dispatcher recovers running attempts from the jobs table.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.errors import UsageError
from service.operations import snapshots
from service.operations.restore import Layout, exchange_files, lock_folder, require_stopped
from service.settings.service import ServiceSettings

FORMAT = 1
"""Version of the archive format; `restore` reads no other."""
MANIFEST = "manifest.json"
MANIFEST_BYTES = 1 << 20
"""Maximum size of a manifest in bytes, which is read into memory before anything is checked."""
QUEUE = "queue.db"
TOKENS = ("ray-token", "mlflow-token", "admin-token")
MEMBERS = (QUEUE, "mlflow.db", "service.yaml", *TOKENS)
"""Members that an archive may contain, in addition to its manifest."""
CHUNK_BYTES = 1 << 20


def backup(settings: ServiceSettings, target: Path) -> dict[str, Any]:
    """Write an archive of the service's current state, while the service may run.

    Args:
        settings: service settings.
        target: file to write, with mode 600; an existing file is replaced once the new one is complete.

    Returns:
        The archive's manifest.

    Raises:
        UsageError: there is no database, it is corrupt, or it belongs to another version of this program.
    """
    target = target.expanduser().resolve()
    with _make_staging_folder(target.with_name(f".{target.name}.partial")) as folder:
        queue = folder / QUEUE
        revision = snapshots.take_snapshot(settings.database_url, queue)
        layout = Layout.from_settings(settings)
        if layout is not None:
            _collect(layout, folder)
        manifest = _make_manifest(folder, revision, snapshots.count_rows(queue))
        _write_archive(folder, manifest, new := folder / "archive.tar")
        # A rename is atomic: there is always one complete archive.
        new.replace(target)
        _sync_folder(target.parent)
    return manifest


def restore(settings: ServiceSettings, source: Path) -> Path | None:
    """Replace the state of a stopped service by an archive's: all of it or nothing.

    If it is interrupted at any point, the same command completes it.

    Args:
        settings: service settings; the service's storage and database are replaced.
        source: an archive that `backup` wrote.

    Returns:
        The folder with the replaced files; None: there were none.

    Raises:
        UsageError: the service runs, or the archive is corrupt or belongs to a newer version of this program.
    """
    layout = Layout.from_settings(settings)
    if layout is None:
        return _restore(settings, source, None, Path(f"{source.expanduser().resolve()}.restoring"))
    layout.private.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in (layout.storage, layout.private):
        folder.chmod(0o700)
    with lock_folder(layout.private):
        return _restore(settings, source, layout, layout.work)


def _restore(settings: ServiceSettings, source: Path, layout: Layout | None, work: Path) -> Path | None:
    require_stopped(settings)
    if layout is not None:
        # The working folder must be free of an earlier, interrupted restore.
        layout.finish_interrupted()
    with _make_staging_folder(work / "new") as folder:
        manifest = unpack(source, folder)
        # The digest proves the bytes; this proves that the file is the queue of this manifest.
        counts = snapshots.count_rows(folder / QUEUE)
        if counts != manifest["rows"]:
            raise UsageError(f"{source}: the number of rows in {QUEUE} differs from the manifest; use another archive")
        snapshots.upgrade_copy(folder / QUEUE)  # upgrades older tables, refuses newer ones
        return exchange_files(settings, layout, folder, work)


def unpack(source: Path, folder: Path) -> dict[str, Any]:
    """Extract an archive, and check each member's digest.

    Args:
        source: the archive.
        folder: an existing folder for the members.

    Returns:
        The archive's manifest.

    Raises:
        UsageError: the archive cannot be read, lacks a member, or contains an unknown one.
    """
    try:
        with tarfile.open(source.expanduser(), "r:") as archive:
            manifest = _read_manifest(archive)
            for name, entry in manifest["members"].items():
                _extract(archive, name, entry, folder / name)
    except (OSError, tarfile.TarError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{source}: not a readable archive of `magnet backup` ({error}); use another archive"
        ) from error
    if QUEUE not in manifest["members"]:
        raise UsageError(f"{source}: the archive lacks {QUEUE}; use another archive")
    return manifest


def _collect(layout: Layout, folder: Path) -> None:
    """Copy the other members from a storage folder."""
    if (mlflow := layout.locate("mlflow.db")).exists():
        snapshots.copy_sqlite(mlflow, folder / "mlflow.db")
    for name in ("service.yaml", *TOKENS):
        if (file := layout.locate(name)).is_file():
            shutil.copyfile(file, folder / name)


def _make_manifest(folder: Path, revision: str, rows: dict[str, int]) -> dict[str, Any]:
    members = {
        name: {"sha256": _digest(folder / name), "bytes": (folder / name).stat().st_size}
        for name in MEMBERS
        if (folder / name).exists()
    }
    versions = {name: importlib.metadata.version(name) for name in ("magnifying-networks", "mlflow", "sqlalchemy")}
    return {
        "format": FORMAT,
        "created_s": time.time(),
        "revision": revision,
        "rows": rows,
        "versions": versions | {"sqlite": sqlite3.sqlite_version, "python": platform.python_version()},
        "members": members,
    }


def _write_archive(folder: Path, manifest: dict[str, Any], target: Path) -> None:
    # The mode is set when the file is created: no other user can open it even for a moment.
    with (
        open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        data = json.dumps(manifest, indent=1).encode()
        archive.addfile(_make_member(MANIFEST, len(data)), io.BytesIO(data))
        for name, entry in manifest["members"].items():
            with open(folder / name, "rb") as content:
                archive.addfile(_make_member(name, entry["bytes"]), content)
        archive.close()
        file.flush()
        os.fsync(file.fileno())


def _make_member(name: str, size_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size_bytes, 0o600, int(time.time())
    return member


def _read_manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    first = archive.next()
    if first is None or first.name != MANIFEST or not first.isfile() or first.size > MANIFEST_BYTES:
        raise ValueError(f"its first member is not {MANIFEST}")
    content = archive.extractfile(first)
    assert content is not None
    manifest: dict[str, Any] = json.load(content)
    if manifest["format"] != FORMAT:
        raise ValueError(f"format {manifest['format']}; this program reads format {FORMAT}")
    # Only known names are extracted, so a member such as ../../x cannot leave the folder.
    if unknown := sorted(set(manifest["members"]) - set(MEMBERS)):
        raise ValueError(f"unknown members {', '.join(unknown)}")
    return manifest


def _extract(archive: tarfile.TarFile, name: str, entry: dict[str, Any], target: Path) -> None:
    member = archive.getmember(name)
    if not member.isfile() or member.size != entry["bytes"]:
        raise ValueError(f"{name} has {member.size} bytes, but its manifest says {entry['bytes']}")
    content = archive.extractfile(member)
    assert content is not None
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        shutil.copyfileobj(content, file, CHUNK_BYTES)
        file.flush()
        os.fsync(file.fileno())
    if _digest(target) != entry["sha256"]:
        raise ValueError(f"{name} is corrupt: its SHA-256 differs from the manifest's")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _make_staging_folder(folder: Path) -> Iterator[Path]:
    """Create an empty folder of mode 700 while the context lasts; one that an interrupted run left is removed."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
