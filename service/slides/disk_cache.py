"""Cache of whole slides on the node's disk, for OpenSlide, which reads only files.

The cache is a folder that all processes of a node share. Each version of a slide is one entry:

    DIGEST/          the slide and its companion files under their names; NAME.part during the download
    DIGEST/.bytes    the size of the complete entry, written first, so that other processes include it in their sums
    DIGEST/.complete written last
    DIGEST.lock      lock of the entry: exclusive for filling or eviction, shared while it is open; its modification
                     time is the last use

An interrupted download continues where it stopped. An entry that any process has open is never evicted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import weakref
from pathlib import Path

from filelock import FileLock

from service import environment
from service.errors import StorageError, UnsupportedSlideError, UsageError
from service.storage import join, list_uris, name, parent, read_bytes
from service.storage.counters import ReadCounters
from service.storage.files import DESCRIPTORS, map_file_errors, open_regular
from service.storage.objects import exists
from service.storage.ranges import LocalFile, OpenFiles, RangeSource, open_source
from service.storage.rights import current_rights, resolve
from service.storage.uri import parse

PART_BYTES = 8 << 20
"""Size of one request of a download."""
MAX_COMPANIONS = 4096
"""Limit of the companion files of one slide."""
MAX_INDEX_BYTES = 4 << 20
"""Size limit of an index file that names other files."""
HAMAMATSU_BYTES = 64 << 10
"""Size of the largest Hamamatsu index file that OpenSlide accepts."""
DICOM_BYTES = 132
"""Number of first bytes of a DICOM file up to the end of its signature."""
INDEX_MARK = b"Virtual Microscope Specimen]"
"""Text by which Hamamatsu index files are recognised."""
FILE_KEY = re.compile(r"file|image|^index")
"""Keys of index files (Slidedat.ini, VMS, VMU) whose values OpenSlide uses as file names."""


class LocalCopy:
    """A local file that is not evicted before this object is deleted.

    Args:
        path: the file.
        lock: descriptor that is closed when this object is deleted, so that the entry can be evicted; None for a file
            outside the cache.
    """

    def __init__(self, path: str, lock: int | None = None) -> None:
        self.path = path
        if lock is not None:
            weakref.finalize(self, os.close, lock)


def get_local_copy(source: RangeSource, counters: ReadCounters) -> LocalCopy:
    """Provide the slide as a local file, together with its companion files.

    OpenSlide opens files by name, and opens further files that they name. A process with rights therefore passes it the
    descriptor of the checked file, or copies if the slide consists of several files.

    Args:
        source: one version of the slide.
        counters: the cost of copying is added to these.

    Raises:
        AccessError: the slide, or a file that belongs to it, is outside this process's rights.
        UsageError: it does not fit in the cache.
        StorageError: it could not be copied.
    """
    if isinstance(source, LocalFile):
        path = resolve(source.uri).key
        if current_rights() is None:
            return LocalCopy(path)
        if _detect_family(source, counters) is None and os.path.isdir(DESCRIPTORS):
            with map_file_errors(source.uri):
                descriptor = open_regular(path, source.uri)
            return LocalCopy(f"{DESCRIPTORS}/{descriptor}", descriptor)
    settings = environment.read_cache_settings()
    return DiskCache(settings.folder / "slides", settings.max_bytes).fetch(source, counters)


class DiskCache:
    """The cache in one folder.

    Args:
        folder: folder of the cache, created if it is missing.
        max_bytes: size limit of all entries together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def fetch(self, source: RangeSource, counters: ReadCounters) -> LocalCopy:
        """Return this version of a slide from the cache; copy it into the cache first if it is missing.

        Args:
            source: one version of the slide.
            counters: the cost of copying is added to these.

        Raises:
            UsageError: the slide is larger than the cache.
            StorageError: the cache is full of open slides, or the copy failed.
        """
        # ETag and size are part of the name, so that a new version of a slide is a new entry.
        digest = hashlib.sha256(f"{source.uri}\0{source.etag}\0{source.size_bytes}".encode()).hexdigest()[:32]
        entry = self._folder / digest
        with map_file_errors(source.uri):
            self._folder.mkdir(parents=True, exist_ok=True)
            while True:  # the entry may be evicted between filling and opening; then fill it again
                lock = _open_locked(entry.with_suffix(".lock"), fcntl.LOCK_SH)
                if (entry / ".complete").exists():
                    os.utime(lock)
                    return LocalCopy(str(entry / name(source.uri)), lock)
                os.close(lock)
                lock = _open_locked(entry.with_suffix(".lock"), fcntl.LOCK_EX)
                try:
                    if not (entry / ".complete").exists():
                        self._fill(entry, source, counters)
                finally:
                    os.close(lock)

    def _fill(self, entry: Path, source: RangeSource, counters: ReadCounters) -> None:
        """Copy the slide and its companion files; the caller has locked the entry."""
        files = OpenFiles()
        members = {name(source.uri): source}
        members |= {inside: open_source(uri, files) for inside, uri in find_companions(source, counters).items()}
        # The space is reserved before the download, so that parallel downloads cannot exceed the limit together.
        self._make_room(entry, sum(member.size_bytes for member in members.values()), source.uri)
        for inside, member in members.items():
            _download(member, entry / inside, counters)
        (entry / ".complete").touch()

    def _make_room(self, entry: Path, size_bytes: int, uri: str) -> None:
        """Evict other entries, the least recently used first, until one of this size fits; then reserve the space."""
        if size_bytes > self._max_bytes:
            raise UsageError(
                f"the slide has {size_bytes / 1e9:.2f} GB, the disk cache only {self._max_bytes / 1e9:.2f} GB;"
                " set MAGNET_CACHE_GB",
                uri=uri,
            )
        with FileLock(self._folder / "evict.lock", fallback_to_soft=False):  # one process at a time makes room
            others = [other for other in self._folder.iterdir() if other.is_dir() and other != entry]
            sizes = {other: _read_entry_bytes(other) for other in others}
            for other in sorted(others, key=_read_last_use):
                if sum(sizes.values()) + size_bytes <= self._max_bytes:
                    break
                if _evict(other):
                    del sizes[other]
            if sum(sizes.values()) + size_bytes > self._max_bytes:
                raise StorageError("the disk cache is full of open slides; set MAGNET_CACHE_GB", uri=uri)
            entry.mkdir(exist_ok=True)
            (entry / ".bytes").write_text(str(size_bytes))


def find_companions(source: RangeSource, counters: ReadCounters) -> dict[str, str]:
    """Find the files that OpenSlide opens in addition to the slide itself.

    MIRAX has its data in a folder with the slide's name, DICOM its levels in files of the same folder, Hamamatsu VMS
    its images in files that the slide names.

    Args:
        source: one version of the slide.
        counters: the cost of reading its start is added to these.

    Returns:
        URI of each file by its path relative to the slide's folder.

    Raises:
        UnsupportedSlideError: an index file names files outside the slide's folder.
        UsageError: there are too many files.
    """
    uri, family = source.uri, _detect_family(source, counters)
    stem, folder = uri.rpartition(".")[0], parent(uri)
    uris: list[str] = []
    if family == "mrxs":
        uris = list_uris(f"{stem}/")
        for index in (other for other in uris if name(other).lower() == "slidedat.ini"):
            _read_named_files(index)  # raises an error if OpenSlide would open files elsewhere
    elif family == "dcm" and parse(uri).scheme not in ("http", "https"):  # those cannot be listed
        siblings = [other for other in list_uris(f"{folder}/") if parent(other) == folder]
        uris = [other for other in siblings if other.lower().endswith(".dcm")]
    elif family == "vms":
        names = set(_read_named_files(uri))
        siblings = [join(folder, other) for other in sorted(names) if "." in other]
        uris = [other for other in siblings if exists(other)]
    if len(uris) > MAX_COMPANIONS:
        raise UsageError(
            f"the slide's folder has {len(uris)} files, more than {MAX_COMPANIONS}; move the slide to a new folder",
            uri=uri,
        )
    inside = {other.removeprefix(f"{folder}/"): other for other in uris if other != uri}
    if any(".." in Path(place).parts or Path(place).is_absolute() for place in inside):
        raise UsageError("a file of the slide has a name that leads out of its folder", uri=uri)
    return inside


def _detect_family(source: RangeSource, counters: ReadCounters) -> str | None:
    """Detect formats of several files: "mrxs", "dcm" or "vms"; None for a single file.

    The rules are those of OpenSlide: MIRAX by its suffix, DICOM and Hamamatsu index files by their content.
    """
    ending = source.uri.rpartition(".")[2].lower()
    if ending in ("mrxs", "dcm"):
        return ending
    length = min(source.size_bytes, HAMAMATSU_BYTES if source.size_bytes <= HAMAMATSU_BYTES else DICOM_BYTES)
    is_loaded = len(source.head) >= length  # the look-up of a remote file may have returned its first bytes
    head = source.head[:length] if is_loaded else source.read(0, length, counters)
    if head[128:132] == b"DICM":
        return "dcm"
    return "vms" if source.size_bytes <= HAMAMATSU_BYTES and INDEX_MARK in head else None


def _read_named_files(uri: str) -> list[str]:
    """Read the values of an index file, each of which OpenSlide may open as a file in the same folder.

    Raises:
        UnsupportedSlideError: a value leads out of the slide's folder.
    """
    lines = read_bytes(uri, most_bytes=MAX_INDEX_BYTES).decode("latin-1").splitlines()
    settings = [
        (key.strip().lower(), value.strip()) for key, equals, value in (line.partition("=") for line in lines) if equals
    ]
    for key, value in settings:
        if FILE_KEY.search(key) and ("/" in value or "\\" in value or value in (".", "..")):
            raise UnsupportedSlideError(f"{key} names a file outside the slide's folder", uri=uri)
    return [value for _, value in settings if value and "/" not in value and "\\" not in value]


def _download(source: RangeSource, target: Path, counters: ReadCounters) -> None:
    """Copy one file; continue where an earlier attempt stopped."""
    if target.exists() and target.stat().st_size == source.size_bytes:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with part.open("ab") as file:
        num_copied = file.tell()
        if num_copied > source.size_bytes:
            file.truncate(0)
            num_copied = 0
        while num_copied < source.size_bytes:
            data = source.read(num_copied, min(PART_BYTES, source.size_bytes - num_copied), counters)
            file.write(data)
            num_copied += len(data)
    part.rename(target)


def _open_locked(path: Path, kind: int) -> int:
    """Open and lock a lock file; make sure that it was not deleted by an eviction in the meantime.

    Args:
        path: lock file, created if it is missing.
        kind: operation of `fcntl.flock`. `filelock.FileLock` has no shared mode.

    Returns:
        The descriptor; closing it releases the lock.

    Raises:
        BlockingIOError: `kind` has `LOCK_NB`, and another process has the lock.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, kind)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _evict(entry: Path) -> bool:
    """Delete an entry unless a process has it open or is filling it; return whether it was deleted."""
    lock_path = entry.with_suffix(".lock")
    try:
        lock = _open_locked(lock_path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # If this process is killed halfway, the entry is not taken for a complete one.
    (entry / ".complete").unlink(missing_ok=True)
    shutil.rmtree(entry)
    lock_path.unlink()
    os.close(lock)
    return True


def _read_entry_bytes(entry: Path) -> int:
    try:
        return int((entry / ".bytes").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _read_last_use(entry: Path) -> float:
    try:
        return entry.with_suffix(".lock").stat().st_mtime
    except FileNotFoundError:
        return 0.0
