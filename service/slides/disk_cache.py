"""Whole slides on the node's disk, for OpenSlide, which reads only files.

The cache is a folder that all processes of a node share. Each version of a slide is one entry:

    DIGEST/          the slide and its companion files, under their own names; NAME.part while it is on its way
    DIGEST/.bytes    the entry's size when complete, written first, so that others reckon with it
    DIGEST/.complete written last
    DIGEST.lock      locked exclusively by who fills or evicts, shared by who has it open; its time is the last use

A download that was cut off goes on where it stopped. Nothing that somebody has open is ever evicted.
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
from service.storage.rights import in_force, resolve
from service.storage.uri import parse

PART_BYTES = 8 << 20
"""A request of a download."""
MAX_COMPANIONS = 4096
"""Files of one slide."""
MOST_INDEX_BYTES = 4 << 20
"""Of an index file that names others."""
HAMAMATSU_BYTES = 64 << 10
"""Of the largest index file of Hamamatsu's that OpenSlide takes."""
DICOM_BYTES = 132
"""From the beginning of a DICOM file to the end of its mark."""
INDEX_MARK = b"Virtual Microscope Specimen]"
"""In Hamamatsu's index files."""
FILE_KEY = re.compile(r"file|image|^index")
"""Keys of index files (Slidedat.ini, VMS, VMU) under which OpenSlide looks for names of files."""


class LocalCopy:
    """A file on this machine's disk that stays there as long as this object lives.

    Args:
        path: the file.
        lock: descriptor whose closing lets the entry be evicted; None for a file outside the cache.
    """

    def __init__(self, path: str, lock: int | None = None) -> None:
        self.path = path
        if lock is not None:
            weakref.finalize(self, os.close, lock)


def local_copy(source: RangeSource, counters: ReadCounters) -> LocalCopy:
    """The slide as a local file, with the files that belong to it.

    OpenSlide opens files by name, and follows names that it finds in them. A process with rights therefore shows it a
    descriptor of the file that was checked, and copies of slides that consist of several files.

    Raises:
        AccessError: the slide, or a file that belongs to it, lies outside this process's rights.
        UsageError: it does not fit in the cache.
        StorageError: it could not be copied.
    """
    if isinstance(source, LocalFile):
        path = resolve(source.uri).key
        if in_force() is None:
            return LocalCopy(path)
        if _family(source, counters) is None and os.path.isdir(DESCRIPTORS):
            with map_file_errors(source.uri):
                descriptor = open_regular(path, source.uri)
            return LocalCopy(f"{DESCRIPTORS}/{descriptor}", descriptor)
    settings = environment.cache_settings()
    return DiskCache(settings.folder / "slides", settings.max_bytes).fetch(source, counters)


class DiskCache:
    """The cache in one folder.

    Args:
        folder: made where it is missing.
        max_bytes: bound of all entries together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def fetch(self, source: RangeSource, counters: ReadCounters) -> LocalCopy:
        """This version of a slide, from the cache or copied into it."""
        digest = hashlib.sha256(f"{source.uri}\0{source.etag}\0{source.size_bytes}".encode()).hexdigest()[:32]
        entry = self._folder / digest
        with map_file_errors(source.uri):
            self._folder.mkdir(parents=True, exist_ok=True)
            while True:  # until nobody evicted it between the filling and the opening
                lock = _locked(entry.with_suffix(".lock"), fcntl.LOCK_SH)
                if (entry / ".complete").exists():
                    os.utime(lock)
                    return LocalCopy(str(entry / name(source.uri)), lock)
                os.close(lock)
                lock = _locked(entry.with_suffix(".lock"), fcntl.LOCK_EX)
                try:
                    if not (entry / ".complete").exists():
                        self._fill(entry, source, counters)
                finally:
                    os.close(lock)

    def _fill(self, entry: Path, source: RangeSource, counters: ReadCounters) -> None:
        """Copy the slide and its companions; the entry is locked."""
        files = OpenFiles()
        members = {name(source.uri): source}
        members |= {inside: open_source(uri, files) for inside, uri in companions(source, counters).items()}
        self._make_room(entry, sum(member.size_bytes for member in members.values()), source.uri)
        for inside, member in members.items():
            _download(member, entry / inside, counters)
        (entry / ".complete").touch()

    def _make_room(self, entry: Path, size_bytes: int, uri: str) -> None:
        """Evict others, the least recently used first, until an entry of that size fits; then reckon with it."""
        if size_bytes > self._max_bytes:
            raise UsageError(
                f"the slide's {size_bytes / 1e9:.2f} GB are more than the disk cache's {self._max_bytes / 1e9:.2f} GB;"
                " set MAGNET_CACHE_GB",
                uri=uri,
            )
        with FileLock(self._folder / "evict.lock", fallback_to_soft=False):  # one process at a time makes room
            others = [other for other in self._folder.iterdir() if other.is_dir() and other != entry]
            held = {other: _entry_bytes(other) for other in others}
            for other in sorted(others, key=_last_use):
                if sum(held.values()) + size_bytes <= self._max_bytes:
                    break
                if _evict(other):
                    del held[other]
            if sum(held.values()) + size_bytes > self._max_bytes:
                raise StorageError("the disk cache is full of slides that are open; set MAGNET_CACHE_GB", uri=uri)
            entry.mkdir(exist_ok=True)
            (entry / ".bytes").write_text(str(size_bytes))


def companions(source: RangeSource, counters: ReadCounters) -> dict[str, str]:
    """The files that OpenSlide looks for beside a slide, as their place relative to it and their URI.

    MIRAX keeps its data in a folder of the slide's name, DICOM its levels in files of one folder, Hamamatsu VMS its
    images in files that the slide names.
    """
    uri, family = source.uri, _family(source, counters)
    stem, folder = uri.rpartition(".")[0], parent(uri)
    found: list[str] = []
    if family == "mrxs":
        found = list_uris(f"{stem}/")
        for index in (other for other in found if name(other).lower() == "slidedat.ini"):
            _named_files(index)
    elif family == "dcm" and parse(uri).scheme not in ("http", "https"):  # those cannot be listed
        beside = [other for other in list_uris(f"{folder}/") if parent(other) == folder]
        found = [other for other in beside if other.lower().endswith(".dcm")]
    elif family == "vms":
        named = set(_named_files(uri))
        beside = [join(folder, other) for other in sorted(named) if "." in other]
        found = [other for other in beside if exists(other)]
    if len(found) > MAX_COMPANIONS:
        raise UsageError(
            f"{len(found)} files beside the slide, more than {MAX_COMPANIONS}; give it a folder of its own"
        )
    inside = {other.removeprefix(f"{folder}/"): other for other in found if other != uri}
    if any(".." in Path(place).parts or Path(place).is_absolute() for place in inside):
        raise UsageError("a file of the slide has a name that leads out of its folder", uri=uri)
    return inside


def _family(source: RangeSource, counters: ReadCounters) -> str | None:
    """Which slides of several files this is one of: "mrxs", "dcm" or "vms"; None for one of a single file.

    As OpenSlide recognises them: MIRAX by its suffix, DICOM and Hamamatsu's index files by their content.
    """
    ending = source.uri.rpartition(".")[2].lower()
    if ending in ("mrxs", "dcm"):
        return ending
    length = min(source.size_bytes, HAMAMATSU_BYTES if source.size_bytes <= HAMAMATSU_BYTES else DICOM_BYTES)
    known = len(source.head) >= length  # finding a remote file brought its beginning
    head = source.head[:length] if known else source.read(0, length, counters)
    if head[128:132] == b"DICM":
        return "dcm"
    return "vms" if source.size_bytes <= HAMAMATSU_BYTES and INDEX_MARK in head else None


def _named_files(uri: str) -> list[str]:
    """What the settings of a slide's index file say, each of which OpenSlide may open as a file beside it.

    Raises:
        UnsupportedSlideError: one would lead out of the slide's folder.
    """
    lines = read_bytes(uri, most_bytes=MOST_INDEX_BYTES).decode("latin-1").splitlines()
    settings = [
        (key.strip().lower(), value.strip()) for key, equals, value in (line.partition("=") for line in lines) if equals
    ]
    for key, value in settings:
        if FILE_KEY.search(key) and ("/" in value or "\\" in value or value in (".", "..")):
            raise UnsupportedSlideError(f"{key} names a file outside the slide's folder", uri=uri)
    return [value for _, value in settings if value and "/" not in value and "\\" not in value]


def _download(source: RangeSource, target: Path, counters: ReadCounters) -> None:
    """Copy one file, going on where an earlier attempt stopped."""
    if target.exists() and target.stat().st_size == source.size_bytes:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with part.open("ab") as file:
        done = file.tell()
        if done > source.size_bytes:
            file.truncate(0)
            done = 0
        while done < source.size_bytes:
            data = source.read(done, min(PART_BYTES, source.size_bytes - done), counters)
            file.write(data)
            done += len(data)
    part.rename(target)


def _locked(path: Path, kind: int) -> int:
    """A descriptor of the lock file, locked; of the file that lies there now, not of one evicted meanwhile."""
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
    """Remove an entry unless somebody has it open or is filling it."""
    lock_path = entry.with_suffix(".lock")
    try:
        lock = _locked(lock_path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    (entry / ".complete").unlink(missing_ok=True)
    shutil.rmtree(entry)
    lock_path.unlink()
    os.close(lock)
    return True


def _entry_bytes(entry: Path) -> int:
    try:
        return int((entry / ".bytes").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _last_use(entry: Path) -> float:
    try:
        return entry.with_suffix(".lock").stat().st_mtime
    except FileNotFoundError:
        return 0.0
