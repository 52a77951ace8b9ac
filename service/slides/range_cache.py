"""Cache of byte ranges of remote slides (compressed tiles and headers) on the node's disk, shared by its processes.

The ranges are rows of one SQLite database in write-ahead mode: a range is stored completely or not at all, other
processes can read while one writes, and a killed process damages nothing. The folder must be on a local disk, not on a
network share, where SQLite's locks do not work. A failure of the cache costs a request, but never fails a read.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from service.slides.planning import Ints
from service.storage.files import map_file_errors

Result = TypeVar("Result")
_Key = tuple[bytes, int, int]

FORMAT = 0x4D61674E
"""SQLite's application_id of our databases; it must change with the layout of the table."""
BUSY_S = 0.5
"""Longest wait for another process that writes; after it the range is not stored."""
EVICT_AT_A_TIME = 16
"""Number of ranges that are evicted by one statement."""
MAX_TOUCHED = 256
"""Number of uses that are collected in memory before they are written to the database."""
_JOURNAL_BYTES = 8 << 20

_CREATE = f"""
PRAGMA journal_mode = WAL;
BEGIN;
PRAGMA application_id = {FORMAT};
CREATE TABLE ranges (
    version BLOB, start INTEGER, length INTEGER, used INTEGER, checksum INTEGER, data BLOB,
    PRIMARY KEY (version, start, length));
CREATE INDEX ranges_by_use ON ranges (used);
COMMIT;
"""
# With synchronous = NORMAL a power failure may lose the last ranges, which are then read again.
_CONNECT = f"PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = {_JOURNAL_BYTES};"
_WHERE = "WHERE version = ? AND start = ? AND length = ?"

_log = logging.getLogger(__name__)


class RangeCache:
    """The cache in one folder; the least recently used ranges are evicted. Thread-safe.

    Args:
        folder: folder of the cache, created if it is missing.
        max_bytes: size limit of the database file; its journal takes some megabytes more.

    Raises:
        UsageError: the folder is unusable.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._path = folder / "ranges.sqlite"
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._touched: dict[_Key, int] = {}
        self._database: sqlite3.Connection | None = None
        with map_file_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            # All processes that have the database open share this lock. `FileLock` has no shared mode.
            self._user_lock = _open_lock_file(folder / "ranges.lock")
            # One process creates or recreates the database while the others wait.
            with FileLock(folder / "opening.lock", fallback_to_soft=False):
                fcntl.flock(self._user_lock, fcntl.LOCK_SH)
                self._open_or_recreate()

    def close(self) -> None:
        """Store the collected uses, and close the database."""
        self._run(self._flush_uses, None)
        with self._lock:
            self._disconnect()
            if self._user_lock >= 0:
                os.close(self._user_lock)
            self._user_lock = -1

    def get(self, version: bytes, start: int, length: int) -> bytes | None:
        """Return a range of one version of a slide; None if it is missing or damaged.

        Args:
            version: digest that identifies the version of the slide.
            start: first byte.
            length: number of bytes.
        """
        data = self._run(lambda database: self._get(database, (version, start, length)), None)
        if len(self._touched) >= MAX_TOUCHED:
            self._run(self._flush_uses, None)
        return data

    def contains(self, version: bytes, start: Ints, length: Ints) -> NDArray[np.bool_]:
        """Return which ranges are stored at this moment; bool (n,), for `start` and `length` of shape (n,)."""
        keys = [(version, first, size) for first, size in zip(start.tolist(), length.tolist(), strict=True)]
        none = np.zeros(len(keys), dtype=bool)
        return self._run(lambda database: np.array([_contains(database, key) for key in keys], dtype=bool), none)

    def put(self, version: bytes, ranges: Sequence[tuple[int, bytes]]) -> None:
        """Store ranges of one version of a slide, given by their first byte and their bytes."""
        self._run(lambda database: self._put(database, version, ranges), None)

    def _get(self, database: sqlite3.Connection, key: _Key) -> bytes | None:
        row = database.execute(f"SELECT data, checksum FROM ranges {_WHERE}", key).fetchone()
        if row is None:
            return None
        data, checksum = row
        # SQLite itself does not check the content of its pages.
        if not isinstance(data, bytes) or len(data) != key[2] or zlib.crc32(data) != checksum:
            database.execute(f"DELETE FROM ranges {_WHERE}", key)
            return None
        self._touched[key] = time.time_ns()
        return data

    def _put(self, database: sqlite3.Connection, version: bytes, ranges: Sequence[tuple[int, bytes]]) -> None:
        now = time.time_ns()
        rows = [(version, start, len(data), now, zlib.crc32(data), data) for start, data in ranges]
        with database:
            database.execute("BEGIN IMMEDIATE")
            self._store_uses(database)
            self._make_room(database, sum(len(data) for _, data in ranges))
            database.executemany("INSERT OR REPLACE INTO ranges VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _make_room(self, database: sqlite3.Connection, num_bytes: int) -> None:
        """Delete the least recently used ranges until these bytes fit without exceeding the limit of the file."""
        page_bytes, limit = _read_pragma(database, "page_size"), self._max_bytes
        # The last page of a row is half full on average, and the inner pages of the two trees are added.
        needed = num_bytes + num_bytes // 8 + 8 * page_bytes
        if needed > limit:
            raise sqlite3.OperationalError(f"{num_bytes} bytes are too many for a cache of {limit}")
        while _count_used_pages(database) * page_bytes + needed > limit:
            oldest = "SELECT rowid FROM ranges ORDER BY used LIMIT ?"
            if not database.execute(f"DELETE FROM ranges WHERE rowid IN ({oldest})", (EVICT_AT_A_TIME,)).rowcount:
                raise sqlite3.OperationalError(f"{num_bytes} bytes are too many for a cache of {limit}")

    def _flush_uses(self, database: sqlite3.Connection) -> None:
        with database:
            database.execute("BEGIN IMMEDIATE")
            self._store_uses(database)

    def _store_uses(self, database: sqlite3.Connection) -> None:
        touched, self._touched = self._touched, {}
        rows = [(used, *key) for key, used in touched.items()]
        database.executemany(f"UPDATE ranges SET used = ? {_WHERE}", rows)

    def _run(self, action: Callable[[sqlite3.Connection], Result], default: Result) -> Result:
        """Run an action on the database; return `default` if it fails, and recreate a damaged database."""
        with self._lock:
            if self._database is None:
                return default
            try:
                return action(self._database)
            except sqlite3.OperationalError as error:  # busy, or the disk is full: a later action may succeed
                _log.debug("range cache %s: %s", self._path, error)
            except sqlite3.DatabaseError as error:
                _log.warning("range cache %s is corrupt; recreated: %s", self._path, error)
                self._recreate()
            return default

    def _open_or_recreate(self) -> None:
        try:
            self._database = _connect(self._path)
        except sqlite3.OperationalError as error:
            _log.warning("range cache %s is unusable; continuing without it: %s", self._path, error)
        except sqlite3.DatabaseError as error:
            _log.warning("range cache %s is corrupt or another database; recreated: %s", self._path, error)
            self._recreate()

    def _recreate(self) -> None:
        """Delete and create the database; if another process has it open, continue without a cache.

        A process that finds the damage gives up its share of the lock, so that the last one can recreate the file.
        """
        self._disconnect()
        try:
            fcntl.flock(self._user_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._user_lock, fcntl.LOCK_UN)
            return
        try:
            for ending in ("", "-wal", "-shm"):
                Path(f"{self._path}{ending}").unlink(missing_ok=True)
            self._database = _connect(self._path)
        except (OSError, sqlite3.Error) as error:
            _log.warning("range cache %s could not be recreated; continuing without it: %s", self._path, error)
        fcntl.flock(self._user_lock, fcntl.LOCK_SH)

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = None


def _connect(path: Path) -> sqlite3.Connection:
    """Open the database; create it if it is missing.

    Raises:
        sqlite3.OperationalError: it is unusable at the moment.
        sqlite3.DatabaseError: it is damaged, or not a range cache.
    """
    # Transactions are explicit, and all threads use this connection under the lock of the cache.
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        if _read_pragma(database, "page_count") == 0:
            database.executescript(_CREATE)
        if _read_pragma(database, "application_id") != FORMAT:
            raise sqlite3.DatabaseError("the file is not a range cache")
        database.executescript(_CONNECT)
    except sqlite3.Error:
        database.close()
        raise
    return database


def _count_used_pages(database: sqlite3.Connection) -> int:
    return _read_pragma(database, "page_count") - _read_pragma(database, "freelist_count")


def _read_pragma(database: sqlite3.Connection, name: str) -> int:
    return database.execute(f"PRAGMA {name}").fetchone()[0]


def _contains(database: sqlite3.Connection, key: _Key) -> bool:
    return database.execute(f"SELECT 1 FROM ranges {_WHERE}", key).fetchone() is not None


def _open_lock_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
