"""Writer of pyramids as tiled TIFFs in which equal tiles are stored once.

A TIFF describes a tile by an offset and a length, and two tiles may refer to the same bytes. A slide of ten gigapixels
with a few thousand different tiles is therefore a file of some megabytes, which readers treat like any other slide.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

TILE_PX = 256
"""Side of a tile."""

_SHORT, _LONG, _RATIONAL, _ASCII, _LONG8 = 3, 4, 5, 2, 16
"""Numbers of value types in TIFF and BigTIFF."""
_FORMATS = {_SHORT: "H", _LONG: "I", _RATIONAL: "II", _ASCII: "s", _LONG8: "Q"}
_LARGEST_TILE_BYTES = 3 * TILE_PX**2
"""Size of a tile without compression, which no JPEG tile of these slides reaches."""

Value = int | bytes | tuple[int, ...] | NDArray[np.int64]


class PyramidWriter:
    """Writes tiles and directories of one TIFF: a classic one if it cannot exceed 4 GiB, otherwise a BigTIFF.

    Args:
        file: binary file, open for writing at its start.
        num_tiles: number of tiles of all levels, repeated ones included.
    """

    def __init__(self, file: BinaryIO, num_tiles: int) -> None:
        self._file = file
        self._big = num_tiles * _LARGEST_TILE_BYTES >= 2**32
        self._link = 8 if self._big else 4
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if self._big else struct.pack("<2sHI", b"II", 42, 0))

    def add_tile(self, jpeg: bytes) -> tuple[int, int]:
        """Store one JPEG tile.

        Returns:
            Offset and length in bytes, which any number of tiles may use.
        """
        return self._file.tell(), self._file.write(jpeg)

    def add_level(
        self, size_px: tuple[int, int], places: NDArray[np.int64], mpp: float, description: str, reduced: bool
    ) -> None:
        """Append the directory of a level.

        Args:
            size_px: (w, h) of the level in its own pixels.
            places: offset and length of each tile, row by row, (tiles, 2).
            mpp: micrometres per pixel of this level.
            description: free text of the level, ASCII.
            reduced: whether the level is a reduced version of an earlier one.
        """
        pixels_per_cm = (round(1e7 / mpp), 1000)
        tags: list[tuple[int, int, Value]] = [
            (254, _LONG, int(reduced)),  # NewSubfileType
            (256, _LONG, size_px[0]),
            (257, _LONG, size_px[1]),
            (258, _SHORT, (8, 8, 8)),  # BitsPerSample
            (259, _SHORT, 7),  # Compression: JPEG
            (262, _SHORT, 6),  # Photometric: YCbCr
            (270, _ASCII, description.encode("ascii") + b"\0"),
            (277, _SHORT, 3),  # SamplesPerPixel
            (282, _RATIONAL, pixels_per_cm),
            (283, _RATIONAL, pixels_per_cm),
            (284, _SHORT, 1),  # PlanarConfiguration: chunky
            (296, _SHORT, 3),  # ResolutionUnit: centimetre
            (322, _LONG, TILE_PX),
            (323, _LONG, TILE_PX),
            (324, _LONG8 if self._big else _LONG, places[:, 0]),
            (325, _LONG, places[:, 1]),
            (530, _SHORT, (2, 2)),  # YCbCrSubSampling
        ]
        self._write_directory(tags)

    def _write_directory(self, tags: Sequence[tuple[int, int, Value]]) -> None:
        """Write long values, then the directory, then the link to it in the previous directory."""
        inline_bytes, offset_format, count_format = (8, "Q", "Q") if self._big else (4, "I", "H")
        entries = []
        for tag, kind, value in tags:
            data, count = _pack(kind, value)
            if len(data) > inline_bytes:  # only short values fit into an entry
                self._align()
                place = self._file.tell()
                self._file.write(data)
                data = struct.pack("<" + offset_format, place)
            entries.append(struct.pack("<HH" + offset_format, tag, kind, count) + data.ljust(inline_bytes, b"\0"))
        self._align()
        start = self._file.tell()
        self._file.write(struct.pack("<" + count_format, len(entries)) + b"".join(entries))
        next_link = self._file.tell()
        self._file.write(bytes(inline_bytes))
        self._file.seek(self._link)
        self._file.write(struct.pack("<" + offset_format, start))
        self._file.seek(0, 2)
        self._link = next_link

    def _align(self) -> None:
        self._file.write(bytes(-self._file.tell() % 8))


def _pack(kind: int, value: Value) -> tuple[bytes, int]:
    """Return a tag's value as bytes, and the number of values of its type."""
    if isinstance(value, bytes):
        return value, len(value)
    if isinstance(value, np.ndarray):
        return value.astype("<u8" if kind == _LONG8 else "<u4").tobytes(), len(value)
    values = value if isinstance(value, tuple) else (value,)
    if kind == _RATIONAL:
        return struct.pack("<II", *values), 1
    return struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values), len(values)
