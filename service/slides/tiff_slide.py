"""Tiled TIFF slides read in place: the header once, then only the requested tiles of each level.

The positions of a level's tiles (TileOffsets, TileByteCounts) have megabytes on a large slide. They are read in pages
on demand into a cache of limited size, so that neither memory nor header bytes grow with the slide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.errors import MagnetError, SlideError, UnsupportedSlideError
from service.slides.byte_cache import ByteCache
from service.slides.cached_object import CachedObject
from service.slides.codecs import APERIO_YCC, BACKGROUND, JPEG, JPEG2000, TileCodec, read_jpeg2000_size
from service.slides.planning import ONLY_EQUAL, Ints, MergedRange, TileGrid, merge_ranges
from service.slides.slide import Load, describe_slide
from service.slides.tiff import Directory, Tiff, TiffArray
from service.slides.vendors import StoredLevel, find_pyramid
from service.storage.counters import ReadCounters
from service.storage.ranges import RangeSource

MAX_TILE_BYTES = 64 << 20
"""Size limit of a decoded tile; scanners write 240 to 1024 pixels per side, some converters 4096."""
MAX_MERGED_BYTES = 512 << 10
"""Size limit of a request for several tiles: large enough to save requests, small enough to decode in parallel."""
MAX_GAP_BYTES = 32 << 10
"""Unneeded bytes that are read rather than making two requests; even from memory they cost less than a call."""
PAGE_VALUES = 16384
"""Number of tile positions that are read at a time."""
_HEADER_PAGE_BYTES = 32 << 10
"""Size of the pages in which a header is read."""
_MAX_HEADER_PAGES = 1024
"""Limit of the pages of one header."""

BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, PREDICTOR = 258, 259, 262, 277, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, SAMPLE_FORMAT, JPEG_TABLES = 322, 323, 324, 325, 339, 347


@dataclass(frozen=True, slots=True)
class _TiffLevel:
    grid: TileGrid
    codec: TileCodec
    offsets: TiffArray
    lengths: TiffArray


class TiffSlide:
    """A `service.slides.slide.SlideFile` read in place.

    Args:
        source: one version of the file.
        index_cache: cache for pages of tile positions, shared by all slides.
        counters: the cost of opening is added to these.

    Raises:
        UnsupportedSlideError: the layout is not supported here; OpenSlide may be able to read it.
        SlideError: the file is damaged.
    """

    def __init__(self, source: RangeSource, index_cache: ByteCache[Ints], counters: ReadCounters) -> None:
        self._source = source
        self._index_cache = index_cache
        try:
            header = _HeaderPages(source, counters)
            tiff = Tiff(header.read, source.size_bytes)
            pyramid = find_pyramid(tiff)
            self._levels = tuple(_read_level(level) for level in pyramid.levels)
            self._cache_index(header)
            self._refuse_subsampled(counters)
        except MagnetError as error:
            raise error.locate(uri=source.uri) from error
        self.grids = tuple(level.grid for level in self._levels)
        self.info = describe_slide(
            source.uri, self.grids, pyramid.mpp_xy, pyramid.format, source.etag, source.size_bytes
        )
        self.memory_bytes = 4096 + sum(4096 + len(level.codec.tables or b"") for level in self._levels)

    def index_loads(self, level: int, tiles: Ints, counters: ReadCounters) -> list[Callable[[], None]]:
        """See `service.slides.slide.SlideFile.index_loads`."""
        pages = np.unique(tiles // PAGE_VALUES).tolist()
        stored = self._levels[level]
        missing = [
            (array, page)
            for array in (stored.offsets, stored.lengths)
            for page in pages
            if self._index_cache.get(self._page_key(array, page)) is None
        ]
        return [partial(self._fill_page, array, page, counters) for array, page in missing]

    def tile_loads(self, level: int, tiles: Ints, counters: ReadCounters) -> list[Load]:
        """See `service.slides.slide.SlideFile.tile_loads`."""
        stored = self._levels[level]
        offset = self._values(stored.offsets, tiles, counters)
        length = self._values(stored.lengths, tiles, counters)
        absent = (length == 0) | (offset == 0)  # how TIFF writers omit empty tiles
        self._check_positions(level, tiles, offset, length, absent)
        loads: list[Load] = []
        if absent.any():
            loads.append(partial(_make_blank_tiles, tiles[absent].tolist(), stored.codec.tile_px))
        tiles, offset, length = tiles[~absent], offset[~absent], length[~absent]
        cached = np.zeros(len(tiles), dtype=bool)
        if isinstance(self._source, CachedObject):
            cached = self._source.contains(offset, length)
        # The disk cache has single tiles. A range that joins a cached tile with others would be requested again.
        for subset, max_gap in ((cached, ONLY_EQUAL), (~cached, MAX_GAP_BYTES)):
            loads += self._join_loads(level, tiles[subset], offset[subset], length[subset], max_gap, counters)
        return loads

    def _join_loads(
        self, level: int, tiles: Ints, offset: Ints, length: Ints, max_gap: int, counters: ReadCounters
    ) -> list[Load]:
        """Return one load for each joined range of these tiles."""
        loads: list[Load] = []
        for merged in merge_ranges(offset, length, max_gap, MAX_MERGED_BYTES):
            members = [(int(tiles[n]), int(offset[n]) - merged.start, int(length[n])) for n in merged.members]
            loads.append(partial(self._load, level, merged, members, counters))
        return loads

    def _load(
        self, level: int, merged: MergedRange, members: list[tuple[int, int, int]], counters: ReadCounters
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Read one range and decode its tiles.

        Args:
            level: pyramid level.
            merged: the range.
            members: tile number, offset in the range and number of bytes of each tile.
            counters: the cost is added to these.
        """
        codec, columns = self._levels[level].codec, self.grids[level].num_columns
        tile, num_decoded, decode_s = members[0][0], 0, 0.0
        try:
            data = self._read_range(merged, members, counters)
            decoded: tuple[int, int] | None = None
            for tile, start, length in members:
                if decoded != (start, length):  # a file that stores equal tiles once refers to the same bytes again
                    start_s = time.perf_counter()
                    pixels = codec.decode(data[start : start + length])
                    decode_s += time.perf_counter() - start_s
                    num_decoded += 1
                    decoded = (start, length)
                yield tile, pixels
            counters.add(ReadCounters(tiles=num_decoded, decode_s=decode_s))
        except MagnetError as error:
            raise error.locate(uri=self._source.uri, level=level, tile=(tile % columns, tile // columns)) from error

    def _read_range(self, merged: MergedRange, members: list[tuple[int, int, int]], counters: ReadCounters) -> bytes:
        """Read a range; if it has several tiles, each is stored separately in the disk cache."""
        size = merged.stop - merged.start
        if isinstance(self._source, CachedObject) and any(length != size for _, _, length in members):
            parts = [(merged.start + start, length) for _, start, length in members]
            return self._source.read_joined(merged.start, size, parts, counters)
        return self._source.read(merged.start, size, counters)

    def _check_positions(self, level: int, tiles: Ints, offset: Ints, length: Ints, absent: NDArray[np.bool_]) -> None:
        """Raise SlideError for tiles that are outside the file or much too large, before anything is read or merged."""
        # A compressed tile can be larger than a decoded one, but not by much.
        end, limit = self._source.size_bytes, 2 * self._levels[level].codec.decoded_bytes + (64 << 10)
        bad = ~absent & ((offset < 0) | (length < 0) | (length > limit) | (offset > end - length))
        if bad.any():
            n = int(np.argmax(bad))
            columns = self.grids[level].num_columns
            raise SlideError(
                f"the tile should be {length[n]} bytes at byte {offset[n]} of a file of {end} bytes;"
                " the file is truncated or damaged, copy it again",
                uri=self._source.uri,
                level=level,
                tile=(int(tiles[n]) % columns, int(tiles[n]) // columns),
            )

    def _values(self, array: TiffArray, tiles: Ints, counters: ReadCounters) -> Ints:
        """Return the entries of an index array for these tiles; read the pages that are not cached."""
        page_of_tile = tiles // PAGE_VALUES
        values = np.empty(len(tiles), dtype=np.int64)
        for number in np.unique(page_of_tile).tolist():
            page = self._index_cache.get(self._page_key(array, number))
            if page is None:
                page = self._load_page(array, number, counters)
            in_page = page_of_tile == number
            values[in_page] = page[tiles[in_page] - number * PAGE_VALUES]
        return values

    def _fill_page(self, array: TiffArray, page: int, counters: ReadCounters) -> None:
        self._load_page(array, page, counters)

    def _load_page(self, array: TiffArray, page: int, counters: ReadCounters) -> Ints:
        first = page * PAGE_VALUES
        num = min(PAGE_VALUES, array.count - first)
        size = array.dtype.itemsize
        return self._cache_page(array, page, self._source.read(array.offset + first * size, num * size, counters))

    def _cache_page(self, array: TiffArray, page: int, data: bytes) -> Ints:
        values = np.frombuffer(data, dtype=array.dtype).astype(np.int64)
        self._index_cache.put(self._page_key(array, page), values)
        return values

    def _cache_index(self, header: _HeaderPages) -> None:
        """Cache the tile positions that were read together with the header, so that they need no further request."""
        for array in [array for level in self._levels for array in (level.offsets, level.lengths)]:
            data = header.read_loaded(array.offset, array.num_bytes) if array.count <= PAGE_VALUES else None
            if data is not None:
                self._cache_page(array, 0, data)

    def _page_key(self, array: TiffArray, page: int) -> tuple[str, str, int, int]:
        return self._source.uri, self._source.etag, array.offset, page

    def _refuse_subsampled(self, counters: ReadCounters) -> None:
        """Raise UnsupportedSlideError for JPEG 2000 with subsampled colour, which only OpenSlide decodes."""
        if self._levels[0].codec.compression not in (APERIO_YCC, JPEG2000):
            return
        first = np.zeros(1, dtype=np.int64)
        offset = int(self._values(self._levels[0].offsets, first, counters)[0])
        length = int(self._values(self._levels[0].lengths, first, counters)[0])
        if length == 0:
            return
        # The subsampling is in the first bytes of the codestream.
        steps = read_jpeg2000_size(self._source.read(offset, min(length, 4096), counters))[1]
        if any(step != (1, 1) for step in steps):
            raise UnsupportedSlideError("unsupported subsampled colour in JPEG 2000")


class _HeaderPages:
    """A header read in pages, so that its many small parts need few requests.

    Args:
        source: the file.
        counters: the cost of the reads is added to these.
    """

    def __init__(self, source: RangeSource, counters: ReadCounters) -> None:
        self._source = source
        self._counters = counters
        head, size = source.head, _HEADER_PAGE_BYTES
        # Only complete pages are used; the last page of a file may be shorter.
        num_complete = len(head) // size if len(head) < source.size_bytes else -(-len(head) // size)
        self._pages = {number: head[number * size : (number + 1) * size] for number in range(num_complete)}

    def read(self, offset: int, length: int) -> bytes:
        """Read exactly this range.

        Raises:
            SlideError: the header exceeds the limit of pages.
        """
        first, last = offset // _HEADER_PAGE_BYTES, (offset + length - 1) // _HEADER_PAGE_BYTES
        data = b"".join(self._page(number) for number in range(first, last + 1))
        start = offset - first * _HEADER_PAGE_BYTES
        return data[start : start + length]

    def read_loaded(self, offset: int, length: int) -> bytes | None:
        """Return this range if its pages are loaded, else None."""
        pages = range(offset // _HEADER_PAGE_BYTES, (offset + length - 1) // _HEADER_PAGE_BYTES + 1)
        return self.read(offset, length) if all(number in self._pages for number in pages) else None

    def _page(self, number: int) -> bytes:
        if number not in self._pages:
            if len(self._pages) >= _MAX_HEADER_PAGES:
                raise SlideError(f"the header is larger than {_MAX_HEADER_PAGES} pages; the file is damaged")
            start = number * _HEADER_PAGE_BYTES
            length = min(_HEADER_PAGE_BYTES, self._source.size_bytes - start)
            self._pages[number] = self._source.read(start, length, self._counters)
        return self._pages[number]


def _read_level(level: StoredLevel) -> _TiffLevel:
    directory = level.directory
    tile_px = directory.integer(TILE_WIDTH), directory.integer(TILE_HEIGHT)
    codec = _read_codec(directory, tile_px)
    if min(tile_px) < 1 or max(tile_px[0] * tile_px[1], codec.decoded_bytes) > MAX_TILE_BYTES:
        raise SlideError(
            f"tiles of {tile_px[0]} x {tile_px[1]} pixels exceed the limit of {MAX_TILE_BYTES} bytes; it is damaged"
        )
    columns, rows = -(-level.stored_px[0] // tile_px[0]), -(-level.stored_px[1] // tile_px[1])
    offsets, lengths = directory.array(TILE_OFFSETS), directory.array(TILE_BYTES)
    for array in (offsets, lengths):
        if array.count != columns * rows or array.rational or array.dtype.kind != "u":
            raise SlideError(f"positions of {array.count} tiles for {columns} x {rows} tiles; the file is damaged")
    return _TiffLevel(TileGrid(level.shown_px, tile_px, columns, level.step_xy), codec, offsets, lengths)


def _read_codec(directory: Directory, tile_px: tuple[int, int]) -> TileCodec:
    # One bit is the default of the TIFF specification.
    bits = set(directory.numbers(BITS).ravel().tolist()) if BITS in directory else {1}
    if bits != {8} or directory.integer(SAMPLE_FORMAT, 1) != 1:
        raise UnsupportedSlideError(f"unsupported samples of {sorted(bits)} bits, not unsigned 8-bit")
    samples = directory.integer(SAMPLES, 1)
    if directory.integer(PLANAR, 1) != 1 and samples > 1:
        raise UnsupportedSlideError("unsupported colours in separate planes")
    compression = directory.integer(COMPRESSION, 1)
    tables = None
    if compression == JPEG and JPEG_TABLES in directory:
        tables = directory.numbers(JPEG_TABLES).tobytes()
    return TileCodec(
        compression=compression,
        photometric=directory.integer(PHOTOMETRIC),
        samples=samples,
        predictor=directory.integer(PREDICTOR, 1),
        tile_px=tile_px,
        tables=tables,
    )


def _make_blank_tiles(tiles: list[int], tile_px: tuple[int, int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield background for tiles that the file omits; a tile takes the memory of one value only."""
    for tile in tiles:
        yield tile, np.broadcast_to(np.uint8(BACKGROUND), (tile_px[1], tile_px[0], 3))
