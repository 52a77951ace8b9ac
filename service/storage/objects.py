"""Whole objects: manifests, tables, pictures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import obstore

from service.errors import NotFoundError, UsageError
from service.storage.files import check_size, file_errors, read_file, walk_files, write_file
from service.storage.http import HttpStore
from service.storage.rights import in_force, outside, resolve
from service.storage.stores import Store, attempt
from service.storage.uri import Location, parse


def read_bytes(uri: str, deadline_s: float | None = None, *, most_bytes: int | None = None) -> bytes:
    """All bytes of an object.

    Args:
        uri: file or object.
        deadline_s: seconds for an object's, retries included; None for the environment's. So in all functions here.
        most_bytes: a larger object is refused before it is read.

    Raises:
        NotFoundError, AccessError, StorageError: see `service.errors`.
    """
    location = resolve(uri)
    if location.scheme == "file":
        with file_errors(uri):
            return read_file(location.key, uri, most_bytes)

    def get(store: Store, key: str) -> bytes:
        if isinstance(store, HttpStore):
            return store.get(key).data
        result = obstore.get(store, key)
        check_size(result.meta["size"], most_bytes, uri)
        return bytes(result.bytes())

    return attempt(uri, get, deadline_s)


def write_bytes(uri: str, data: bytes, deadline_s: float | None = None) -> None:
    """Write an object whole or not at all: readers see the old bytes or the new ones, never a part."""
    location = resolve(uri, write=True)
    if location.scheme == "file":
        with file_errors(uri):
            write_file(location.key, data, uri)
        return
    if location.scheme in ("http", "https"):
        raise UsageError("cannot write to an http(s) URI; use s3://, gs://, az:// or a path", uri=uri)

    def put(store: Store, key: str) -> None:
        assert not isinstance(store, HttpStore)
        obstore.put(store, key, data)

    attempt(uri, put, deadline_s, write=True)


def list_uris(prefix: str, deadline_s: float | None = None) -> list[str]:
    """URIs of all objects below a folder, sorted; empty where there are none.

    Links among them are listed, not followed: whether one may be read shows when it is opened.
    """
    location = resolve(prefix)
    if location.scheme == "file":
        with file_errors(prefix):
            found = walk_files(location.key)
        folder = parse(prefix).key.rstrip("/")
        paths = [f"{folder}/{path}" for path in found]
        return ["file://" + path.replace("%", "%25") for path in paths] if "://" in prefix else paths
    if location.scheme in ("http", "https"):
        raise UsageError("an http(s) server cannot be listed; use s3://, gs://, az:// or a path", uri=prefix)

    def keys(store: Store, key: str) -> list[str]:
        assert not isinstance(store, HttpStore)
        return [meta["path"] for chunk in obstore.list(store, key or None) for meta in chunk]

    rights, found = in_force(), sorted(attempt(prefix, keys, deadline_s))
    if rights is not None:  # a prefix may hold folders that are closed
        found = [key for key in found if rights.allow(Location(location.scheme, location.host, key), write=False)]
    return [f"{location.scheme}://{location.host}/{key}" for key in found]


def stat(uri: str, deadline_s: float | None = None) -> tuple[int, str]:
    """Size in bytes and ETag. A file's ETag is made of its time of change, size and inode."""
    location = resolve(uri)
    if location.scheme == "file":
        with file_errors(uri):
            return file_identity(os.stat(location.key))

    def head(store: Store, key: str) -> tuple[int, str]:
        if isinstance(store, HttpStore):
            answer = store.head(key)
            return answer.size_bytes, answer.etag
        meta = obstore.head(store, key)
        return meta["size"], object_etag(meta)

    return attempt(uri, head, deadline_s)


def exists(uri: str) -> bool:
    """Whether an object lies under this URI."""
    try:
        stat(uri)
    except NotFoundError:
        return False
    return True


def delete(uri: str, deadline_s: float | None = None) -> None:
    """Remove an object; one that is not there is no error."""
    location = resolve(uri, write=True)
    if location.scheme == "file":
        with file_errors(uri):
            Path(location.key).unlink(missing_ok=True)
        return

    def remove(store: Store, key: str) -> None:
        assert not isinstance(store, HttpStore)
        obstore.delete(store, key)

    try:
        attempt(uri, remove, deadline_s, write=True)
    except NotFoundError:
        return


def delete_all(prefix: str) -> None:
    """Remove a folder with all objects below it; one that is not there is no error."""
    location, rights = resolve(prefix, write=True), in_force()
    if rights is not None and rights.closed_below(location, write=True):
        raise outside(prefix, write=True)
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
