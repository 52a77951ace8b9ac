"""The structure of TIFF files: directories and tags, nothing about slides.

Classic TIFF and BigTIFF, both byte orders. Only what is asked for is read: values of a tag stay in the file until
then, and long arrays (the places of a million tiles) are described, never loaded here. A header is hostile until shown
otherwise, so everything that it can make grow has a limit.

Source: the TIFF 6.0 specification, section 2, and the BigTIFF proposal (8-byte counts and offsets, magic 43).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import SlideError, UnsupportedSlideError

MAX_DIRECTORIES = 512
"""Directories of a file; slides have about ten, z-stacks some hundreds."""
MAX_ENTRIES = 1024
"""Tags of a directory."""
MAX_VALUES_BYTES = 1 << 20
"""Bytes of a tag that is loaded whole."""

Read = Callable[[int, int], bytes]
"""``read(offset, length)`` gives exactly that range or raises."""

_DTYPES = {1: "u1", 2: "S1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4", 11: "f4"}
_DTYPES |= {12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_RATIONALS = (5, 10)


@dataclass(frozen=True, slots=True)
class TiffArray:
    """Where the values of a tag lie."""

    offset: int
    """First byte in the file."""
    count: int
    """Number of values; a rational is one value."""
    dtype: np.dtype
    """Type of a value as stored; of numerator and denominator for a rational."""
    rational: bool

    @property
    def num_bytes(self) -> int:
        """Length in the file."""
        return self.count * self.dtype.itemsize * (2 if self.rational else 1)


class Directory:
    """One image file directory: its tags, read when asked for."""

    def __init__(self, entries: dict[int, TiffArray], read: Read, size_bytes: int) -> None:
        self._entries = entries
        self._read = read
        self._size_bytes = size_bytes

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def array(self, tag: int) -> TiffArray:
        """Where the values of a tag lie, checked to be inside the file.

        Raises:
            SlideError: the tag is missing or points out of the file.
        """
        entry = self._entries.get(tag)
        if entry is None:
            raise SlideError(f"TIFF tag {tag} is missing; the file is damaged, or no image that can be read")
        if entry.offset + entry.num_bytes > self._size_bytes:
            raise SlideError(
                f"TIFF tag {tag} points to bytes {entry.offset} to {entry.offset + entry.num_bytes} of a file of"
                f" {self._size_bytes}; it is truncated or damaged, copy it anew"
            )
        return entry

    def numbers(self, tag: int) -> NDArray[np.generic]:
        """All values of a short tag, in native byte order; shape (count,), or (count, 2) for rationals."""
        entry = self.array(tag)
        if entry.num_bytes > MAX_VALUES_BYTES:
            raise SlideError(f"TIFF tag {tag} holds {entry.num_bytes} bytes, more than {MAX_VALUES_BYTES}")
        values = np.frombuffer(self._read(entry.offset, entry.num_bytes), dtype=entry.dtype)
        values = values.astype(entry.dtype.newbyteorder("="))
        return values.reshape(-1, 2) if entry.rational else values

    def integer(self, tag: int, default: int | None = None) -> int:
        """The first value of a tag.

        Raises:
            SlideError: the tag is missing and there is no default, or it holds no integer.
        """
        if default is not None and tag not in self:
            return default
        entry = self.array(tag)
        if entry.count == 0 or entry.rational or entry.dtype.kind not in "ui":
            raise SlideError(f"TIFF tag {tag} holds no integer; the file is damaged")
        return int(self.numbers(tag)[0])

    def prefix(self, tag: int, max_bytes: int) -> bytes:
        """The first bytes of a tag; empty where the tag is missing."""
        if tag not in self:
            return b""
        entry = self.array(tag)
        return self._read(entry.offset, min(entry.num_bytes, max_bytes))

    def text(self, tag: int, max_bytes: int = 1 << 16) -> str:
        """The first characters of a text tag; empty where the tag is missing."""
        return self.prefix(tag, max_bytes).split(b"\0", 1)[0].decode("utf-8", errors="replace")


class Tiff:
    """A TIFF file's directories: the chain of images, and below each its sub-images.

    Args:
        read: reads a range of the file.
        size_bytes: its length.

    Raises:
        UnsupportedSlideError: it is no TIFF.
        SlideError: it is one, but cut short, or its header breaks a limit.
    """

    def __init__(self, read: Read, size_bytes: int) -> None:
        self._read = read
        self._size_bytes = size_bytes
        if size_bytes < 8:
            raise UnsupportedSlideError(f"a file of {size_bytes} bytes is no slide; copy it anew")
        head = read(0, min(16, size_bytes))
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        magic = struct.unpack_from(f"{order}H", head, 2)[0] if order else 0
        if order is None or magic not in (42, 43):
            raise UnsupportedSlideError("is no TIFF")
        self._order = order
        self.big = magic == 43
        self._seen: set[int] = set()
        first = self._unpack("Q", head, 8) if self.big else self._unpack("I", head, 4)
        self.directories = self._chain(first)

    def children(self, directory: Directory) -> list[Directory]:
        """The sub-images of an image (tag 330, SubIFDs), in their order."""
        if 330 not in directory:
            return []
        offsets = [int(offset) for offset in directory.numbers(330).ravel()]
        if len(offsets) > MAX_DIRECTORIES:
            raise SlideError(f"{len(offsets)} sub-images, more than {MAX_DIRECTORIES}; the file is damaged")
        return [self._directory(offset)[0] for offset in offsets]

    def _chain(self, offset: int) -> list[Directory]:
        directories = []
        while offset:
            directory, offset = self._directory(offset)
            directories.append(directory)
        if not directories:
            raise SlideError("the TIFF holds no image; it is truncated or damaged, copy it anew")
        return directories

    def _directory(self, offset: int) -> tuple[Directory, int]:
        """The directory at `offset`, and the offset of the next one in its chain."""
        if offset in self._seen:
            raise SlideError(f"the TIFF's chain of images runs in a circle at byte {offset}; the file is damaged")
        if len(self._seen) >= MAX_DIRECTORIES:
            raise SlideError(f"the TIFF holds more than {MAX_DIRECTORIES} images; the file is damaged")
        self._seen.add(offset)
        head, item, tail = (8, 20, 8) if self.big else (2, 12, 4)
        num = self._unpack("Q" if self.big else "H", self._bytes(offset, head), 0)
        if num > MAX_ENTRIES:
            raise SlideError(f"a TIFF directory has {num} tags, more than {MAX_ENTRIES}; the file is damaged")
        block = self._bytes(offset + head, num * item + tail)
        entries = {}
        for n in range(num):
            tag, entry = self._entry(block[n * item : (n + 1) * item], offset + head + n * item)
            if entry is not None:
                entries[tag] = entry
        following = self._unpack("Q" if self.big else "I", block, num * item)
        return Directory(entries, self._read, self._size_bytes), following

    def _entry(self, item: bytes, place: int) -> tuple[int, TiffArray | None]:
        """Tag and values of one entry; None where its type is unknown, as the specification asks of readers."""
        tag, kind = struct.unpack_from(f"{self._order}HH", item)
        if kind not in _DTYPES:
            return tag, None
        width = 8 if self.big else 4
        count = self._unpack("Q" if self.big else "I", item, 4)
        dtype = np.dtype(self._order + _DTYPES[kind])
        entry = TiffArray(place + 4 + width, count, dtype, kind in _RATIONALS)
        if entry.num_bytes > width:
            offset = self._unpack("Q" if self.big else "I", item, 4 + width)
            entry = TiffArray(offset, count, dtype, kind in _RATIONALS)
        return tag, entry

    def _bytes(self, offset: int, length: int) -> bytes:
        if offset + length > self._size_bytes:
            raise SlideError(
                f"the TIFF's directory should lie at byte {offset}, but the file ends at {self._size_bytes};"
                " it is truncated or damaged, copy it anew"
            )
        return self._read(offset, length)

    def _unpack(self, code: str, data: bytes, offset: int) -> int:
        return struct.unpack_from(f"{self._order}{code}", data, offset)[0]
