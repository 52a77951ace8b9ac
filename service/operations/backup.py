"""Backup and restore of a service: its queue, MLflow's file, secrets and settings, in one archive.

    magnet backup  --config service.yaml OUT.tar       while the service runs
    magnet restore --config service.yaml IN.tar        while it is stopped

An archive holds `queue.db` (the queue's tables as SQLite, also where they are in Postgres), and from the storage folder
of `magnet serve` `service.yaml`, `mlflow.db` and the tokens, each with its SHA-256 in `manifest.json`. Results, slides
and artifacts are not in it, nor the workflows of DBOS: the jobs table is the truth, and attempts under way are found
again.
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
from service.operations.restore import Layout, locked, require_stopped, switch
from service.settings.service import ServiceSettings

FORMAT = 1
"""Of the archive; restore reads this one."""
MANIFEST = "manifest.json"
MANIFEST_BYTES = 1 << 20
QUEUE = "queue.db"
TOKENS = ("ray-token", "mlflow-token", "admin-token")
MEMBERS = (QUEUE, "mlflow.db", "service.yaml", *TOKENS)
"""Members that an archive may hold, in addition to its manifest."""
CHUNK_BYTES = 1 << 20


def backup(settings: ServiceSettings, target: Path) -> dict[str, Any]:
    """Write an archive of the service as it is now; the service may run.

    Args:
        settings: of the service.
        target: file to write, with mode 600; an old one is replaced once the new one is whole.

    Returns:
        The archive's manifest.

    Raises:
        UsageError: there is nothing to back up, or its tables belong to another version of this program.
    """
    target = target.expanduser().resolve()
    with _staging(target.with_name(f".{target.name}.partial")) as folder:
        queue = folder / QUEUE
        revision = snapshots.take(settings.database_url, queue)
        layout = Layout.of(settings)
        if layout is not None:
            _collect(layout, folder)
        manifest = _manifest(folder, revision, snapshots.count_rows(queue))
        _write_archive(folder, manifest, new := folder / "archive.tar")
        new.replace(target)
        _sync_folder(target.parent)
    return manifest


def restore(settings: ServiceSettings, source: Path) -> Path | None:
    """Replace the service's state by an archive's: all of it or nothing.

    Killed at any point, the same command again completes it. The service must be stopped.

    Args:
        settings: of the service; its storage and database are written.
        source: an archive that `backup` wrote.

    Returns:
        The folder with what was replaced; None where nothing was there.

    Raises:
        UsageError: the service runs, the archive is damaged, or belongs to a newer version of this program.
    """
    layout = Layout.of(settings)
    if layout is None:
        return _restore(settings, source, None, Path(f"{source.expanduser().resolve()}.restoring"))
    layout.private.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in (layout.storage, layout.private):
        folder.chmod(0o700)
    with locked(layout.private):
        return _restore(settings, source, layout, layout.work)


def _restore(settings: ServiceSettings, source: Path, layout: Layout | None, work: Path) -> Path | None:
    require_stopped(settings)
    if layout is not None:
        layout.finish_interrupted()
    with _staging(work / "new") as folder:
        manifest = unpack(source, folder)
        counts = snapshots.count_rows(folder / QUEUE)
        if counts != manifest["rows"]:
            raise UsageError(f"{source}: {QUEUE} has other rows than its manifest says; use another archive")
        snapshots.prepare(folder / QUEUE)  # upgrades older tables, refuses newer ones
        return switch(settings, layout, folder, work)


def unpack(source: Path, folder: Path) -> dict[str, Any]:
    """Take an archive apart, checking each member's digest; its manifest.

    Raises:
        UsageError: it cannot be read, lacks a member, or holds one that it should not.
    """
    try:
        with tarfile.open(source.expanduser(), "r:") as archive:
            manifest = _read_manifest(archive)
            for name, about in manifest["members"].items():
                _extract(archive, name, about, folder / name)
    except (OSError, tarfile.TarError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{source}: not a readable archive of `magnet backup` ({error}); use another one") from error
    if QUEUE not in manifest["members"]:
        raise UsageError(f"{source}: holds no {QUEUE}; use another archive")
    return manifest


def _collect(layout: Layout, folder: Path) -> None:
    """Copy what a storage folder has beside the queue."""
    if (mlflow := layout.destination("mlflow.db")).exists():
        snapshots.copy_sqlite(mlflow, folder / "mlflow.db")
    for name in ("service.yaml", *TOKENS):
        if (file := layout.destination(name)).is_file():
            shutil.copyfile(file, folder / name)


def _manifest(folder: Path, revision: str, rows: dict[str, int]) -> dict[str, Any]:
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
    with (
        open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        data = json.dumps(manifest, indent=1).encode()
        archive.addfile(_member(MANIFEST, len(data)), io.BytesIO(data))
        for name, about in manifest["members"].items():
            with open(folder / name, "rb") as content:
                archive.addfile(_member(name, about["bytes"]), content)
        archive.close()
        file.flush()
        os.fsync(file.fileno())


def _member(name: str, size: int) -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.size, about.mode, about.mtime = size, 0o600, int(time.time())
    return about


def _read_manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    first = archive.next()
    if first is None or first.name != MANIFEST or not first.isfile() or first.size > MANIFEST_BYTES:
        raise ValueError(f"its first member is not {MANIFEST}")
    content = archive.extractfile(first)
    assert content is not None
    manifest: dict[str, Any] = json.load(content)
    if manifest["format"] != FORMAT:
        raise ValueError(f"format {manifest['format']}, this program reads {FORMAT}")
    if unknown := sorted(set(manifest["members"]) - set(MEMBERS)):
        raise ValueError(f"unknown members {', '.join(unknown)}")
    return manifest


def _extract(archive: tarfile.TarFile, name: str, about: dict[str, Any], target: Path) -> None:
    member = archive.getmember(name)
    if not member.isfile() or member.size != about["bytes"]:
        raise ValueError(f"{name} has {member.size} bytes, its manifest says {about['bytes']}")
    content = archive.extractfile(member)
    assert content is not None
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        shutil.copyfileobj(content, file, CHUNK_BYTES)
        file.flush()
        os.fsync(file.fileno())
    if _digest(target) != about["sha256"]:
        raise ValueError(f"{name} is damaged: its SHA-256 differs from the manifest's")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """An empty folder of mode 700 while the context lasts; one that a killed run left is removed."""
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
