"""Parts of large objects: byte ranges of one version of a file or object, never a mixture of two."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import obstore
from obstore.exceptions import GenericError

from service.errors import SlideChangedError, SlideError, StorageError
from service.storage.counters import ReadCounters
from service.storage.files import file_errors, open_regular
from service.storage.http import HttpStore
from service.storage.objects import file_identity, object_etag, stat
from service.storage.rights import resolve
from service.storage.stores import Store, attempt
from service.storage.uri import parse

MAX_OPEN_FILES = 64
"""Local files that are kept open at a time."""


class RangeSource(Protocol):
    """One version of a file or object, read by ranges. Threads may share it."""

    uri: str
    size_bytes: int
    etag: str
    head: bytes
    """First bytes of the file, where finding it brought them; else empty."""

    def read(self, offset: int, length: int, counters: ReadCounters) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises:
            SlideError: the range does not lie inside the file.
            SlideChangedError: the file is no longer the one that was opened.
            StorageError: the storage failed in spite of retries.
        """
        ...


class _OpenFile:
    """A file descriptor with the number of threads that use it just now."""

    __slots__ = ("descriptor", "users")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0


class OpenFiles:
    """File descriptors kept open for the next read, the least recently used closed first."""

    def __init__(self, max_files: int = MAX_OPEN_FILES) -> None:
        self._max_files = max_files
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, str], _OpenFile] = OrderedDict()

    @contextmanager
    def using(self, path: str, etag: str, uri: str) -> Iterator[int]:
        """The descriptor of that version of a file, which nobody closes in the meantime."""
        key = (path, etag)
        with self._lock:
            file = self._files.get(key)
            if file is None:
                file = self._files[key] = _OpenFile(_open_version(path, etag, uri))
            self._files.move_to_end(key)
            file.users += 1
            self._close_surplus()
        try:
            yield file.descriptor
        finally:
            with self._lock:
                file.users -= 1

    def close(self) -> None:
        """Close all; nobody may be reading."""
        with self._lock:
            for file in self._files.values():
                os.close(file.descriptor)
            self._files.clear()

    def _close_surplus(self) -> None:
        surplus = len(self._files) - self._max_files
        if surplus > 0:
            for key in [key for key, file in self._files.items() if file.users == 0][:surplus]:
                os.close(self._files.pop(key).descriptor)


class LocalFile:
    """A `RangeSource` on a file of this machine."""

    def __init__(self, uri: str, files: OpenFiles) -> None:
        self.uri = uri
        self.size_bytes, self.etag = stat(uri)
        self.head = b""
        self._path = resolve(uri).key
        self._files = files

    def read(self, offset: int, length: int, counters: ReadCounters) -> bytes:
        """See `RangeSource.read`."""
        _check_range(self, offset, length)
        start = time.perf_counter()
        with file_errors(self.uri):
            with self._files.using(self._path, self.etag, self.uri) as descriptor:
                data = os.pread(descriptor, length, offset)
            changed = len(data) != length or file_identity(os.stat(self._path))[1] != self.etag
        if changed:
            raise _changed(self.uri)
        counters.add(ReadCounters(requests=1, bytes=length, wait_s=time.perf_counter() - start))
        return data

    def check_unchanged(self) -> None:
        """Raise SlideChangedError if another file, or other content, has come to lie under the name."""
        with file_errors(self.uri):
            if file_identity(os.stat(self._path))[1] != self.etag:
                raise _changed(self.uri)


class RemoteObject:
    """A `RangeSource` on an object in a store.

    Args:
        uri: the object.
        deadline_s: seconds for each read, retries included; None for the environment's.
        head_bytes: bytes from the start to bring with size and ETag, in the same request.
    """

    def __init__(self, uri: str, deadline_s: float | None, head_bytes: int = 0) -> None:
        self.uri = uri
        self._deadline_s = deadline_s
        self.head = b""
        if head_bytes:
            self.size_bytes, self.etag, self.head = attempt(uri, partial(_start_of, head_bytes), deadline_s)
        else:
            self.size_bytes, self.etag = stat(uri, deadline_s)

    def read(self, offset: int, length: int, counters: ReadCounters) -> bytes:
        """See `RangeSource.read`."""
        _check_range(self, offset, length)

        def get(store: Store, key: str) -> bytes:
            if isinstance(store, HttpStore):
                answer = store.get(key, offset, offset + length)
                if answer.etag != self.etag or answer.size_bytes != self.size_bytes:
                    raise _changed(self.uri)
                return answer.data
            result = obstore.get(store, key, options={"range": (offset, offset + length)})
            if object_etag(result.meta) != self.etag or result.meta["size"] != self.size_bytes:
                raise _changed(self.uri)
            return bytes(result.bytes())

        start = time.perf_counter()
        data = attempt(self.uri, get, self._deadline_s)
        counters.add(ReadCounters(requests=1, bytes=len(data), wait_s=time.perf_counter() - start))
        if len(data) != length:
            raise StorageError(f"the store sent {len(data)} bytes where {length} were asked for", uri=self.uri)
        return data


def open_source(uri: str, files: OpenFiles, deadline_s: float | None = None, head_bytes: int = 0) -> RangeSource:
    """The current version of a file or object.

    Args:
        uri: path or URI.
        files: holds the descriptors of local files.
        deadline_s: seconds for each read of an object, retries included; None for the environment's.
        head_bytes: bytes from the start of an object to bring at once; none of a file.
    """
    return LocalFile(uri, files) if parse(uri).scheme == "file" else RemoteObject(uri, deadline_s, head_bytes)


def _start_of(num_bytes: int, store: Store, key: str) -> tuple[int, str, bytes]:
    """Size, ETag and first bytes of an object."""
    if isinstance(store, HttpStore):
        answer = store.get(key, 0, num_bytes)
        return answer.size_bytes, answer.etag, answer.data
    try:
        result = obstore.get(store, key, options={"range": (0, num_bytes)})
        return result.meta["size"], object_etag(result.meta), bytes(result.bytes())
    except GenericError as error:
        if "416" not in str(error).partition("\n")[0]:
            raise
        meta = obstore.head(store, key)  # an empty object has no range that could be asked for
        return meta["size"], object_etag(meta), b""


def _open_version(path: str, etag: str, uri: str) -> int:
    descriptor = open_regular(path, uri)
    if file_identity(os.fstat(descriptor))[1] != etag:
        os.close(descriptor)
        raise _changed(uri)
    return descriptor


def _check_range(source: RangeSource, offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > source.size_bytes:
        raise SlideError(
            f"the file ends at byte {source.size_bytes}, but its header points to bytes {offset} to {offset + length};"
            " it is truncated or damaged, copy it anew",
            uri=source.uri,
        )


def _changed(uri: str) -> SlideChangedError:
    return SlideChangedError("the slide was replaced while it was being read; open it anew", uri=uri)
