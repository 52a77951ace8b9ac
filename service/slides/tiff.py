"""Parsing of TIFF files into directories and tags, independent of slides.

Supports classic TIFF and BigTIFF in both byte orders. The values of a tag are read only when they are requested, and
long arrays (the positions of a million tiles) are only located, never loaded here. A header may be hostile, so there is
a limit for everything whose size it determines.

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
"""Limit of the directories in a file; slides have about ten, z-stacks some hundreds."""
MAX_ENTRIES = 1024
"""Limit of the tags in a directory."""
MAX_VALUES_BYTES = 1 << 20
"""Size limit of a tag whose values are all loaded."""

Read = Callable[[int, int], bytes]
"""Function ``read(offset, length)`` that returns exactly this byte range or raises an error."""

_DTYPES = {1: "u1", 2: "S1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4", 11: "f4"}
_DTYPES |= {12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_RATIONALS = (5, 10)
_SUB_IFDS = 330


@dataclass(frozen=True, slots=True)
class TiffArray:
    """Location of the values of a tag in the file."""

    offset: int
    """First byte."""
    count: int
    """Number of values; a rational is one value."""
    dtype: np.dtype
    """Stored type of a value, or of the numerator and denominator of a rational."""
    rational: bool
    """Whether a value is a pair of numerator and denominator."""

    @property
    def num_bytes(self) -> int:
        """Size of all values in the file."""
        return self.count * self.dtype.itemsize * (2 if self.rational else 1)


class Directory:
    """One image file directory. The values of its tags are read on request.

    Args:
        entries: locations of the values by tag.
        read: reads a range of the file.
        size_bytes: size of the file.
    """

    def __init__(self, entries: dict[int, TiffArray], read: Read, size_bytes: int) -> None:
        self._entries = entries
        self._read = read
        self._size_bytes = size_bytes

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def array(self, tag: int) -> TiffArray:
        """Return the location of the values of a tag.

        Raises:
            SlideError: the tag is missing, or the location is not inside the file.
        """
        entry = self._entries.get(tag)
        if entry is None:
            raise SlideError(f"TIFF tag {tag} is missing; the file is damaged or its image is unsupported")
        if entry.offset + entry.num_bytes > self._size_bytes:
            raise SlideError(
                f"TIFF tag {tag} points to bytes {entry.offset} to {entry.offset + entry.num_bytes} of a file of"
                f" {self._size_bytes}; it is truncated or damaged, copy it again"
            )
        return entry

    def numbers(self, tag: int) -> NDArray[np.generic]:
        """Read all values of a short tag.

        Returns:
            Values in native byte order, of shape (count,), or (count, 2) for rationals.

        Raises:
            SlideError: the tag is missing, outside the file, or larger than `MAX_VALUES_BYTES`.
        """
        entry = self.array(tag)
        if entry.num_bytes > MAX_VALUES_BYTES:
            raise SlideError(f"TIFF tag {tag} has {entry.num_bytes} bytes, more than {MAX_VALUES_BYTES}")
        values = np.frombuffer(self._read(entry.offset, entry.num_bytes), dtype=entry.dtype)
        values = values.astype(entry.dtype.newbyteorder("="))
        return values.reshape(-1, 2) if entry.rational else values

    def integer(self, tag: int, default: int | None = None) -> int:
        """Read the first value of a tag.

        Raises:
            SlideError: the tag is missing and there is no default, or its value is not an integer.
        """
        if default is not None and tag not in self:
            return default
        entry = self.array(tag)
        if entry.count == 0 or entry.rational or entry.dtype.kind not in "ui":
            raise SlideError(f"TIFF tag {tag} is not an integer; the file is damaged")
        return int(self.numbers(tag)[0])

    def prefix(self, tag: int, max_bytes: int) -> bytes:
        """Read the first bytes of a tag; empty if the tag is missing."""
        if tag not in self:
            return b""
        entry = self.array(tag)
        return self._read(entry.offset, min(entry.num_bytes, max_bytes))

    def text(self, tag: int, max_bytes: int = 1 << 16) -> str:
        """Read the first characters of a text tag; empty if the tag is missing."""
        return self.prefix(tag, max_bytes).split(b"\0", 1)[0].decode("utf-8", errors="replace")


class Tiff:
    """The directories of a TIFF file: the chain of images, and the sub-images of each.

    Args:
        read: reads a range of the file.
        size_bytes: size of the file.

    Raises:
        UnsupportedSlideError: the file is not a TIFF.
        SlideError: the TIFF is truncated, or its header exceeds a limit.
    """

    def __init__(self, read: Read, size_bytes: int) -> None:
        self._read = read
        self._size_bytes = size_bytes
        if size_bytes < 8:
            raise UnsupportedSlideError(f"a file of {size_bytes} bytes is not a slide; copy it again")
        head = read(0, min(16, size_bytes))
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        magic = struct.unpack_from(f"{order}H", head, 2)[0] if order else 0
        if order is None or magic not in (42, 43):
            raise UnsupportedSlideError("is not a TIFF")
        self._order = order
        self.big = magic == 43
        """Whether the file is a BigTIFF."""
        # Offsets of all directories that were read: a loop in the chain or the sub-images would never end.
        self._visited: set[int] = set()
        first = self._unpack("Q", head, 8) if self.big else self._unpack("I", head, 4)
        self.directories = self._read_chain(first)
        """Directories of the main chain, in their order."""

    def children(self, directory: Directory) -> list[Directory]:
        """Read the directories of the sub-images of an image (tag SubIFDs), in their order."""
        if _SUB_IFDS not in directory:
            return []
        offsets = [int(offset) for offset in directory.numbers(_SUB_IFDS).ravel()]
        if len(offsets) > MAX_DIRECTORIES:
            raise SlideError(f"{len(offsets)} sub-images, more than {MAX_DIRECTORIES}; the file is damaged")
        return [self._read_directory(offset)[0] for offset in offsets]

    def _read_chain(self, offset: int) -> list[Directory]:
        directories = []
        while offset:
            directory, offset = self._read_directory(offset)
            directories.append(directory)
        if not directories:
            raise SlideError("the TIFF has no image; it is truncated or damaged, copy it again")
        return directories

    def _read_directory(self, offset: int) -> tuple[Directory, int]:
        """Read the directory at `offset`, and the offset of the next one in its chain; 0 for none."""
        if offset in self._visited:
            raise SlideError(f"the TIFF's chain of images has a loop at byte {offset}; the file is damaged")
        if len(self._visited) >= MAX_DIRECTORIES:
            raise SlideError(f"the TIFF has more than {MAX_DIRECTORIES} images; the file is damaged")
        self._visited.add(offset)
        # Sizes in bytes of the entry count, of an entry, and of the offset of the next directory.
        head, item, tail = (8, 20, 8) if self.big else (2, 12, 4)
        num = self._unpack("Q" if self.big else "H", self._read_checked(offset, head), 0)
        if num > MAX_ENTRIES:
            raise SlideError(f"a TIFF directory has {num} tags, more than {MAX_ENTRIES}; the file is damaged")
        block = self._read_checked(offset + head, num * item + tail)
        entries = {}
        for n in range(num):
            tag, entry = self._parse_entry(block[n * item : (n + 1) * item], offset + head + n * item)
            if entry is not None:
                entries[tag] = entry
        next_offset = self._unpack("Q" if self.big else "I", block, num * item)
        return Directory(entries, self._read, self._size_bytes), next_offset

    def _parse_entry(self, item: bytes, position: int) -> tuple[int, TiffArray | None]:
        """Parse one entry into its tag and the location of its values.

        Args:
            item: bytes of the entry.
            position: offset of the entry in the file.

        Returns:
            The tag, and None for a value of unknown type, which readers must ignore by the specification.
        """
        tag, kind = struct.unpack_from(f"{self._order}HH", item)
        if kind not in _DTYPES:
            return tag, None
        width = 8 if self.big else 4
        count = self._unpack("Q" if self.big else "I", item, 4)
        dtype = np.dtype(self._order + _DTYPES[kind])
        entry = TiffArray(position + 4 + width, count, dtype, kind in _RATIONALS)
        if entry.num_bytes > width:  # the entry has the offset of the values instead of the values
            offset = self._unpack("Q" if self.big else "I", item, 4 + width)
            entry = TiffArray(offset, count, dtype, kind in _RATIONALS)
        return tag, entry

    def _read_checked(self, offset: int, length: int) -> bytes:
        if offset + length > self._size_bytes:
            raise SlideError(
                f"the TIFF's directory should be at byte {offset}, but the file ends at {self._size_bytes};"
                " it is truncated or damaged, copy it again"
            )
        return self._read(offset, length)

    def _unpack(self, code: str, data: bytes, offset: int) -> int:
        return struct.unpack_from(f"{self._order}{code}", data, offset)[0]
