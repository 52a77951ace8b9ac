"""Whole objects: manifests, tables, pictures."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore

from service.errors import AccessError, NotFoundError, StorageError, UsageError
from service.storage.stores import Store, attempt
from service.storage.uri import parse


def read_bytes(uri: str, deadline_s: float | None = None) -> bytes:
    """All bytes of an object.

    Args:
        uri: file or object.
        deadline_s: seconds for an object's, retries included; None for the environment's. So in all functions here.

    Raises:
        NotFoundError, AccessError, StorageError: see `service.errors`.
    """
    location = parse(uri)
    if location.scheme == "file":
        with file_errors(uri):
            return Path(location.key).read_bytes()
    return attempt(uri, lambda store, key: bytes(obstore.get(store, key).bytes()), deadline_s)


def write_bytes(uri: str, data: bytes, deadline_s: float | None = None) -> None:
    """Write an object whole or not at all: readers see the old bytes or the new ones, never a part."""
    location = parse(uri)
    if location.scheme == "file":
        with file_errors(uri):
            _write_file(Path(location.key), data)
        return
    if location.scheme in ("http", "https"):
        raise UsageError("cannot write to an http(s) URI; use s3://, gs://, az:// or a path", uri=uri)
    attempt(uri, lambda store, key: obstore.put(store, key, data), deadline_s)


def list_uris(prefix: str, deadline_s: float | None = None) -> list[str]:
    """URIs of all objects below a folder, sorted; empty where there are none."""
    location = parse(prefix)
    if location.scheme == "file":
        with file_errors(prefix):
            found = sorted(str(path) for path in Path(location.key).rglob("*") if path.is_file())
        as_uri = "://" in prefix
        return ["file://" + path.replace("%", "%25") if as_uri else path for path in found]
    if location.scheme in ("http", "https"):
        raise UsageError("an http(s) server cannot be listed; use s3://, gs://, az:// or a path", uri=prefix)

    def keys(store: Store, key: str) -> list[str]:
        return [meta["path"] for chunk in obstore.list(store, key or None) for meta in chunk]

    return [f"{location.scheme}://{location.host}/{key}" for key in sorted(attempt(prefix, keys, deadline_s))]


def stat(uri: str, deadline_s: float | None = None) -> tuple[int, str]:
    """Size in bytes and ETag. A file's ETag is made of its time of change, size and inode."""
    location = parse(uri)
    if location.scheme == "file":
        with file_errors(uri):
            return file_identity(os.stat(location.key))
    meta = attempt(uri, obstore.head, deadline_s)
    return meta["size"], object_etag(meta)


def exists(uri: str) -> bool:
    """Whether an object lies under this URI."""
    try:
        stat(uri)
    except NotFoundError:
        return False
    return True


def delete(uri: str, deadline_s: float | None = None) -> None:
    """Remove an object; one that is not there is no error."""
    location = parse(uri)
    if location.scheme == "file":
        with file_errors(uri):
            Path(location.key).unlink(missing_ok=True)
        return
    try:
        attempt(uri, obstore.delete, deadline_s)
    except NotFoundError:
        return


def delete_all(prefix: str) -> None:
    """Remove a folder with all objects below it; one that is not there is no error."""
    location = parse(prefix)
    if location.scheme == "file":
        with file_errors(prefix):
            if Path(location.key).is_dir():
                shutil.rmtree(location.key)
        return
    for uri in list_uris(prefix):
        delete(uri)


def file_identity(status: os.stat_result) -> tuple[int, str]:
    """Size in bytes and a stand-in for an ETag."""
    return status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"


def object_etag(meta: obstore.ObjectMeta) -> str:
    """The ETag of an object, or where a server gives none, the time of its last change."""
    return meta["e_tag"] or meta["last_modified"].isoformat()


@contextmanager
def file_errors(uri: str) -> Iterator[None]:
    """Context in which the errors of file operations become ours."""
    try:
        yield
    except OSError as error:
        raise _mapped_file_error(error, uri) from error


def _mapped_file_error(error: OSError, uri: str) -> UsageError | StorageError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError("no such file; check the path, and that this machine mounts it", uri=uri)
    if isinstance(error, IsADirectoryError):
        return UsageError("is a folder, not a file", uri=uri)
    if isinstance(error, PermissionError):
        return AccessError("no right to do this to the file; check its owner and mode", uri=uri)
    return StorageError(f"the file system failed: {error.strerror or error}", uri=uri)


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
