"""Reading, writing, listing and deleting whole objects: manifests, tables, images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import obstore

from service.errors import NotFoundError, UsageError
from service.storage.files import check_size, map_file_errors, read_file, walk_files, write_file
from service.storage.http import WebStore
from service.storage.rights import current_rights, outside_error, resolve
from service.storage.stores import Store, run_with_retries
from service.storage.uri import Location, parse


def read_bytes(uri: str, deadline_s: float | None = None, *, most_bytes: int | None = None) -> bytes:
    """Read all bytes of an object.

    Args:
        uri: file or object.
        deadline_s: time limit in seconds for the requests to an object store, including retries; None uses the limit
            of the environment. All functions of this module take it.
        most_bytes: size limit in bytes; a larger object is refused before it is read.

    Raises:
        NotFoundError, AccessError, StorageError: see `service.errors`.
        UsageError: the object is larger than `most_bytes`.
    """
    location = resolve(uri)
    if location.scheme == "file":
        with map_file_errors(uri):
            return read_file(location.key, uri, most_bytes)

    def get(store: Store, key: str) -> bytes:
        if isinstance(store, WebStore):
            return store.get(key).data
        result = obstore.get(store, key)
        check_size(result.meta["size"], most_bytes, uri)
        return bytes(result.bytes())

    return run_with_retries(uri, get, deadline_s)


def write_bytes(uri: str, data: bytes, deadline_s: float | None = None) -> None:
    """Write an object completely or not at all: readers see the old bytes or the new ones, never a mixture."""
    location = resolve(uri, write=True)
    if location.scheme == "file":
        with map_file_errors(uri):
            write_file(location.key, data, uri)
        return
    if location.scheme in ("http", "https"):
        raise UsageError("cannot write to an http(s) URI; use s3://, gs://, az:// or a path", uri=uri)

    def put(store: Store, key: str) -> None:
        assert not isinstance(store, WebStore)  # the scheme was checked above
        obstore.put(store, key, data)

    run_with_retries(uri, put, deadline_s, write=True)


def list_uris(prefix: str, deadline_s: float | None = None) -> list[str]:
    """List the URIs of all objects below a folder, sorted; empty if there are none.

    Links are listed but not followed: access to their target is checked when they are opened.
    """
    location = resolve(prefix)
    if location.scheme == "file":
        with map_file_errors(prefix):
            relative_paths = walk_files(location.key)
        folder = parse(prefix).key.rstrip("/")
        paths = [f"{folder}/{path}" for path in relative_paths]
        # A percent sign would otherwise be decoded when the URI is parsed.
        return ["file://" + path.replace("%", "%25") for path in paths] if "://" in prefix else paths
    if location.scheme in ("http", "https"):
        raise UsageError("an http(s) server cannot be listed; use s3://, gs://, az:// or a path", uri=prefix)

    def list_keys(store: Store, key: str) -> list[str]:
        assert not isinstance(store, WebStore)
        return [meta["path"] for chunk in obstore.list(store, key or None) for meta in chunk]

    rights, keys = current_rights(), sorted(run_with_retries(prefix, list_keys, deadline_s))
    if rights is not None:  # a readable prefix may contain closed folders
        keys = [key for key in keys if rights.allows(Location(location.scheme, location.host, key))]
    return [f"{location.scheme}://{location.host}/{key}" for key in keys]


def stat(uri: str, deadline_s: float | None = None) -> tuple[int, str]:
    """Return the size in bytes and the ETag of an object; see `identify_file` for the ETag of a file."""
    location = resolve(uri)
    if location.scheme == "file":
        with map_file_errors(uri):
            return identify_file(os.stat(location.key))

    def head(store: Store, key: str) -> tuple[int, str]:
        if isinstance(store, WebStore):
            answer = store.head(key)
            return answer.size_bytes, answer.etag
        meta = obstore.head(store, key)
        return meta["size"], get_etag(meta)

    return run_with_retries(uri, head, deadline_s)


def exists(uri: str) -> bool:
    """Return whether an object exists under this URI."""
    try:
        stat(uri)
    except NotFoundError:
        return False
    return True


def delete(uri: str, deadline_s: float | None = None) -> None:
    """Delete an object; a missing object is not an error."""
    location = resolve(uri, write=True)
    if location.scheme == "file":
        with map_file_errors(uri):
            Path(location.key).unlink(missing_ok=True)
        return

    def remove(store: Store, key: str) -> None:
        assert not isinstance(store, WebStore)
        obstore.delete(store, key)

    try:
        run_with_retries(uri, remove, deadline_s, write=True)
    except NotFoundError:
        return


def delete_all(prefix: str) -> None:
    """Delete a folder with all objects below it; a missing folder is not an error.

    Raises:
        AccessError: some part of the folder must not be written; then nothing is deleted.
    """
    location, rights = resolve(prefix, write=True), current_rights()
    if rights is not None and rights.excludes_part_of(location, write=True):
        raise outside_error(prefix, write=True)
    if location.scheme == "file":
        with map_file_errors(prefix):
            if Path(location.key).is_dir():
                shutil.rmtree(location.key)
        return
    for uri in list_uris(prefix):
        delete(uri)


def identify_file(status: os.stat_result) -> tuple[int, str]:
    """Return the size in bytes and a replacement for an ETag, from modification time, size and inode."""
    return status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"


def get_etag(meta: obstore.ObjectMeta) -> str:
    """Return the ETag of an object or, if the server reports none, its modification time."""
    return meta["e_tag"] or meta["last_modified"].isoformat()
