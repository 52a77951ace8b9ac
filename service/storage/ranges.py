"""Byte ranges of large objects, read from one version of a file or object, never from a mixture of two."""

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
from service.storage.files import map_file_errors, open_regular
from service.storage.http import WebStore
from service.storage.objects import get_etag, identify_file, stat
from service.storage.rights import resolve
from service.storage.stores import Store, run_with_retries
from service.storage.uri import parse

MAX_OPEN_FILES = 64
"""Maximum number of local files kept open."""


class RangeSource(Protocol):
    """One version of a file or object, read by ranges. Thread-safe."""

    uri: str
    """Path or URI as the caller gave it."""
    size_bytes: int
    """Size of the whole file or object."""
    etag: str
    """Version of the file or object."""
    head: bytes
    """First bytes of the object if the request that looked it up returned them, else empty."""

    def read(self, offset: int, length: int, counters: ReadCounters) -> bytes:
        """Read exactly `length` bytes from `offset`.

        Args:
            offset: first byte, 0 or more.
            length: number of bytes, 0 or more.
            counters: the cost of the read is added to these.

        Raises:
            SlideError: the range is not inside the file.
            SlideChangedError: the file is no longer the version that was opened.
            StorageError: the storage failed in spite of retries.
        """
        ...


class _OpenFile:
    """A file descriptor and the number of threads that are using it."""

    __slots__ = ("descriptor", "users")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0


class OpenFiles:
    """File descriptors kept open for the next read; the least recently used ones are closed first.

    Args:
        max_files: maximum number of open files; more stay open only while threads are using them.
    """

    def __init__(self, max_files: int = MAX_OPEN_FILES) -> None:
        self._max_files = max_files
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, str], _OpenFile] = OrderedDict()

    @contextmanager
    def using(self, path: str, etag: str, uri: str) -> Iterator[int]:
        """Provide the descriptor of this version of a file, which stays open inside the context.

        Args:
            path: resolved path.
            etag: version, as `service.storage.objects.identify_file` returns it.
            uri: name for error messages.

        Raises:
            SlideChangedError: the file at the path is another version.
        """
        key = (path, etag)
        with self._lock:
            # Opening is inside the lock, so that two threads do not open the same file twice.
            file = self._files.get(key)
            if file is None:
                file = self._files[key] = _OpenFile(_open_version(path, etag, uri))
            self._files.move_to_end(key)
            file.users += 1
            self._close_unused()
        try:
            yield file.descriptor
        finally:
            with self._lock:
                file.users -= 1

    def close(self) -> None:
        """Close all files; no thread may be reading."""
        with self._lock:
            for file in self._files.values():
                os.close(file.descriptor)
            self._files.clear()

    def _close_unused(self) -> None:
        num_excess = len(self._files) - self._max_files
        if num_excess > 0:
            for key in [key for key, file in self._files.items() if file.users == 0][:num_excess]:
                os.close(self._files.pop(key).descriptor)


class LocalFile:
    """A `RangeSource` on a local file."""

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
        with map_file_errors(self.uri):
            with self._files.using(self._path, self.etag, self.uri) as descriptor:
                data = os.pread(descriptor, length, offset)
            # A file that is overwritten in place keeps its descriptor, so the path is checked after every read.
            changed = len(data) != length or identify_file(os.stat(self._path))[1] != self.etag
        if changed:
            raise changed_error(self.uri)
        counters.add(ReadCounters(requests=1, bytes=length, wait_s=time.perf_counter() - start))
        return data

    def check_unchanged(self) -> None:
        """Raise SlideChangedError if the file under this name was replaced or modified."""
        with map_file_errors(self.uri):
            if identify_file(os.stat(self._path))[1] != self.etag:
                raise changed_error(self.uri)


class RemoteObject:
    """A `RangeSource` on an object in a store.

    Args:
        uri: the object.
        deadline_s: time limit in seconds for each read, including retries; None uses the limit of the environment.
        head_bytes: number of bytes from the start to read in the request for size and ETag; 0 reads none.
    """

    def __init__(self, uri: str, deadline_s: float | None, head_bytes: int = 0) -> None:
        self.uri = uri
        self._deadline_s = deadline_s
        self.head = b""
        if head_bytes:
            self.size_bytes, self.etag, self.head = run_with_retries(uri, partial(_read_start, head_bytes), deadline_s)
        else:
            self.size_bytes, self.etag = stat(uri, deadline_s)

    def read(self, offset: int, length: int, counters: ReadCounters) -> bytes:
        """See `RangeSource.read`."""
        _check_range(self, offset, length)

        def get(store: Store, key: str) -> bytes:
            if isinstance(store, WebStore):
                answer = store.get(key, offset, offset + length)
                if answer.etag != self.etag or answer.size_bytes != self.size_bytes:
                    raise changed_error(self.uri)
                return answer.data
            result = obstore.get(store, key, options={"range": (offset, offset + length)})
            if get_etag(result.meta) != self.etag or result.meta["size"] != self.size_bytes:
                raise changed_error(self.uri)
            return bytes(result.bytes())

        start = time.perf_counter()
        data = run_with_retries(self.uri, get, self._deadline_s)
        # A read that fails below counts too, because its bytes were received.
        counters.add(ReadCounters(requests=1, bytes=len(data), wait_s=time.perf_counter() - start))
        if len(data) != length:
            raise StorageError(f"the store sent {len(data)} bytes instead of the requested {length}", uri=self.uri)
        return data


def open_source(uri: str, files: OpenFiles, deadline_s: float | None = None, head_bytes: int = 0) -> RangeSource:
    """Look up the current version of a file or object.

    Args:
        uri: path or URI.
        files: pool that keeps the descriptors of local files.
        deadline_s: time limit in seconds for each read of an object, including retries; None uses the limit of the
            environment.
        head_bytes: number of bytes from the start of an object to read at once; ignored for a file.

    Raises:
        NotFoundError, AccessError, StorageError: see `service.errors`.
    """
    return LocalFile(uri, files) if parse(uri).scheme == "file" else RemoteObject(uri, deadline_s, head_bytes)


def changed_error(uri: str) -> SlideChangedError:
    """Return the error for a slide that was replaced while it was open."""
    return SlideChangedError("the slide was replaced while it was being read; open it again", uri=uri)


def _read_start(num_bytes: int, store: Store, key: str) -> tuple[int, str, bytes]:
    """Read size, ETag and first bytes of an object."""
    if isinstance(store, WebStore):
        answer = store.get(key, 0, num_bytes)
        return answer.size_bytes, answer.etag, answer.data
    try:
        result = obstore.get(store, key, options={"range": (0, num_bytes)})
        return result.meta["size"], get_etag(result.meta), bytes(result.bytes())
    except GenericError as error:
        if "416" not in str(error).partition("\n")[0]:
            raise
        meta = obstore.head(store, key)  # an empty object has no byte range to request
        return meta["size"], get_etag(meta), b""


def _open_version(path: str, etag: str, uri: str) -> int:
    descriptor = open_regular(path, uri)
    # The file may have been replaced since its ETag was read.
    if identify_file(os.fstat(descriptor))[1] != etag:
        os.close(descriptor)
        raise changed_error(uri)
    return descriptor


def _check_range(source: RangeSource, offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > source.size_bytes:
        raise SlideError(
            f"the file ends at byte {source.size_bytes}, but its header points to bytes {offset} to {offset + length};"
            " it is truncated or damaged, copy it again",
            uri=source.uri,
        )
