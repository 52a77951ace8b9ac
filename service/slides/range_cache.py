"""Byte ranges of remote slides on the node's disk: compressed tiles and headers, shared by the node's processes.

The ranges lie in one SQLite database in write-ahead mode: a range is kept whole or not at all, processes read while one
writes, and one that is killed leaves the rest as it was. The folder must lie on a disk of the node, not on a network
share, where SQLite's locks do not hold. Whatever goes wrong here costs a request, never a read.
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
"""Marks a database as ours (SQLite's application_id); another number for another layout of the table."""
BUSY_S = 0.5
"""Longest wait for another process that writes; then the range is not kept."""
EVICT_AT_A_TIME = 16
MAX_TOUCHED = 256
"""Uses that are remembered before they are written down."""
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
_CONNECT = f"PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = {_JOURNAL_BYTES};"
_WHERE = "WHERE version = ? AND start = ? AND length = ?"

_log = logging.getLogger(__name__)


class RangeCache:
    """The cache in one folder; the least recently used ranges make room for new ones. Threads may share it.

    Args:
        folder: made where it is missing.
        max_bytes: bound of the database file; its journal takes some megabytes more.

    Raises:
        UsageError: the folder cannot be used.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._path = folder / "ranges.sqlite"
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._touched: dict[_Key, int] = {}
        self._database: sqlite3.Connection | None = None
        with map_file_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            self._user = _lock_file(folder / "ranges.lock")  # held shared by all who have the database open
            # One process creates or replaces the database while the others wait.
            with FileLock(folder / "opening.lock", fallback_to_soft=False):
                fcntl.flock(self._user, fcntl.LOCK_SH)
                self._open_or_replace()

    def close(self) -> None:
        """Write down what was used, and let go of the database."""
        self._guarded(self._write_uses, None)
        with self._lock:
            self._disconnect()
            if self._user >= 0:
                os.close(self._user)
            self._user = -1

    def get(self, version: bytes, start: int, length: int) -> bytes | None:
        """A range of one version of a slide; None where it is not held, or held damaged."""
        data = self._guarded(lambda database: self._get(database, (version, start, length)), None)
        if len(self._touched) >= MAX_TOUCHED:
            self._guarded(self._write_uses, None)
        return data

    def held(self, version: bytes, start: Ints, length: Ints) -> NDArray[np.bool_]:
        """(n,) which of these ranges are held just now."""
        keys = [(version, first, size) for first, size in zip(start.tolist(), length.tolist(), strict=True)]
        none = np.zeros(len(keys), dtype=bool)
        return self._guarded(lambda database: np.array([_holds(database, key) for key in keys], dtype=bool), none)

    def put(self, version: bytes, ranges: Sequence[tuple[int, bytes]]) -> None:
        """Hold these ranges, given by their first byte and their bytes."""
        self._guarded(lambda database: self._put(database, version, ranges), None)

    def _get(self, database: sqlite3.Connection, key: _Key) -> bytes | None:
        found = database.execute(f"SELECT data, checksum FROM ranges {_WHERE}", key).fetchone()
        if found is None:
            return None
        data, checksum = found
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
            self._note_uses(database)
            self._make_room(database, sum(len(data) for _, data in ranges))
            database.executemany("INSERT OR REPLACE INTO ranges VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _make_room(self, database: sqlite3.Connection, num_bytes: int) -> None:
        """Delete the least recently used ranges until the file can take these bytes without growing past its bound."""
        page_bytes, most = _pragma(database, "page_size"), self._max_bytes
        # a row's last page is half full on average, and inner pages of the two trees come on top
        wanted = num_bytes + num_bytes // 8 + 8 * page_bytes
        if wanted > most:
            raise sqlite3.OperationalError(f"{num_bytes} bytes are too many for a cache of {most}")
        while (_pragma(database, "page_count") - _pragma(database, "freelist_count")) * page_bytes + wanted > most:
            oldest = "SELECT rowid FROM ranges ORDER BY used LIMIT ?"
            if not database.execute(f"DELETE FROM ranges WHERE rowid IN ({oldest})", (EVICT_AT_A_TIME,)).rowcount:
                raise sqlite3.OperationalError(f"{num_bytes} bytes are too many for a cache of {most}")

    def _write_uses(self, database: sqlite3.Connection) -> None:
        with database:
            database.execute("BEGIN IMMEDIATE")
            self._note_uses(database)

    def _note_uses(self, database: sqlite3.Connection) -> None:
        touched, self._touched = self._touched, {}
        rows = [(used, *key) for key, used in touched.items()]
        database.executemany(f"UPDATE ranges SET used = ? {_WHERE}", rows)

    def _guarded(self, action: Callable[[sqlite3.Connection], Result], otherwise: Result) -> Result:
        """Run on the database; `otherwise` where that fails, and a damaged database is replaced."""
        with self._lock:
            if self._database is None:
                return otherwise
            try:
                return action(self._database)
            except sqlite3.OperationalError as error:  # busy, or the disk is full: the next time may do
                _log.debug("range cache %s: %s", self._path, error)
            except sqlite3.DatabaseError as error:
                _log.warning("range cache %s is damaged and begun anew: %s", self._path, error)
                self._replace()
            return otherwise

    def _open_or_replace(self) -> None:
        try:
            self._database = _connect(self._path)
        except sqlite3.OperationalError as error:
            _log.warning("range cache %s cannot be used and is left out: %s", self._path, error)
        except sqlite3.DatabaseError as error:
            _log.warning("range cache %s is damaged or foreign and begun anew: %s", self._path, error)
            self._replace()

    def _replace(self) -> None:
        """Begin anew, unless another process has the database open: then do without, so that the last one can."""
        self._disconnect()
        try:
            fcntl.flock(self._user, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._user, fcntl.LOCK_UN)
            return
        try:
            for ending in ("", "-wal", "-shm"):
                Path(f"{self._path}{ending}").unlink(missing_ok=True)
            self._database = _connect(self._path)
        except (OSError, sqlite3.Error) as error:
            _log.warning("range cache %s cannot be begun anew and is left out: %s", self._path, error)
        fcntl.flock(self._user, fcntl.LOCK_SH)

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = None


def _connect(path: Path) -> sqlite3.Connection:
    """The database, made where it is missing.

    Raises:
        sqlite3.OperationalError: it cannot be used now.
        sqlite3.DatabaseError: it is damaged or not ours.
    """
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        if _pragma(database, "page_count") == 0:
            database.executescript(_CREATE)
        if _pragma(database, "application_id") != FORMAT:
            raise sqlite3.DatabaseError("no range cache")
        database.executescript(_CONNECT)
    except sqlite3.Error:
        database.close()
        raise
    return database


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return database.execute(f"PRAGMA {name}").fetchone()[0]


def _holds(database: sqlite3.Connection, key: _Key) -> bool:
    return database.execute(f"SELECT 1 FROM ranges {_WHERE}", key).fetchone() is not None


def _lock_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
