"""Slides of formats that only OpenSlide supports, presented as levels of tiles like all others."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import numpy as np
import openslide
from numpy.typing import NDArray

from service.errors import SlideError, UnsupportedSlideError
from service.slides.codecs import BACKGROUND, blend_over_background
from service.slides.disk_cache import get_local_copy
from service.slides.planning import Ints, TileGrid
from service.slides.slide import Load, describe_slide
from service.storage.counters import ReadCounters
from service.storage.ranges import LocalFile, RangeSource

TILE_PX = 512
"""Side of the square tiles that are read through OpenSlide, which decodes the file's tiles below them."""
FILE_TILE_PX = 1 << 26
"""Pixel limit of a tile in the file; a decoded pixel takes four bytes."""
MEMORY_BYTES = 1 << 20
"""Estimated memory of an open handle."""

# Our tiles overlap several tiles of the file, so neighbours need the same decoded ones.
_shared_tiles = openslide.OpenSlideCache(64 << 20)


class OpenSlideSlide:
    """A `service.slides.slide.SlideFile` read through OpenSlide; a remote slide is first copied to the disk cache.

    Args:
        source: one version of the file.
        counters: the cost of copying is added to these.

    Raises:
        UnsupportedSlideError: OpenSlide cannot open it.
    """

    def __init__(self, source: RangeSource, counters: ReadCounters) -> None:
        self._source = source
        self._copy = get_local_copy(source, counters)
        self._lock = threading.Lock()
        self._handle = self._open()
        vendor = self._handle.properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        # OpenSlide 4.0.1 crashes when reads of a damaged DICOM file fail in two threads at once.
        self._one_at_a_time = threading.Lock() if vendor == "dicom" else nullcontext()
        _refuse_large_tiles(self._handle, source.uri)
        self._steps = self._handle.level_downsamples
        self._background = _read_background(self._handle)
        whole = self._handle.dimensions
        self.grids = tuple(
            TileGrid(size, (TILE_PX, TILE_PX), -(-size[0] // TILE_PX), (whole[0] / size[0], whole[1] / size[1]))
            for size in self._handle.level_dimensions
        )
        self.info = describe_slide(
            source.uri, self.grids, _read_mpp(self._handle), f"openslide:{vendor}", source.etag, source.size_bytes
        )
        self.memory_bytes = MEMORY_BYTES

    def index_loads(self, level: int, tiles: Ints, counters: ReadCounters) -> list[Callable[[], None]]:
        """See `service.slides.slide.SlideFile.index_loads`; OpenSlide has its own index."""
        return []

    def tile_loads(self, level: int, tiles: Ints, counters: ReadCounters) -> list[Load]:
        """See `service.slides.slide.SlideFile.tile_loads`."""
        return [partial(self._load, level, tile, counters) for tile in tiles.tolist()]

    def _load(self, level: int, tile: int, counters: ReadCounters) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        row, column = divmod(tile, self.grids[level].num_columns)
        step = self._steps[level]
        corner = round(column * TILE_PX * step), round(row * TILE_PX * step)
        start_s = time.perf_counter()
        handle = self._handle
        try:
            with self._one_at_a_time:
                image = np.asarray(handle.read_region(corner, level, (TILE_PX, TILE_PX)))
        except openslide.OpenSlideError as error:
            self._reopen(handle)
            raise SlideError(
                f"OpenSlide cannot read the tile ({error}); the file is damaged",
                uri=self._source.uri,
                level=level,
                tile=(column, row),
            ) from error
        if isinstance(self._source, LocalFile):
            self._source.check_unchanged()
        pixels = blend_over_background(image[..., :3], image[..., 3:], self._background)
        counters.add(ReadCounters(tiles=1, decode_s=time.perf_counter() - start_s))
        yield tile, pixels

    def _open(self) -> openslide.OpenSlide:
        try:
            handle = openslide.OpenSlide(self._copy.path)
        except openslide.OpenSlideError as error:
            # The path of the copy in the cache would mean nothing to the user.
            reason = str(error).replace(self._copy.path, "the file")
            raise UnsupportedSlideError(f"OpenSlide cannot open the file: {reason}", uri=self._source.uri) from error
        handle.set_cache(_shared_tiles)
        return handle

    def _reopen(self, failed: openslide.OpenSlide) -> None:
        """Replace a handle that failed: OpenSlide refuses all calls on a handle after an error."""
        with self._lock:  # of several threads that failed on the same handle, one opens a new one
            if self._handle is failed:
                self._handle = self._open()


def _refuse_large_tiles(handle: openslide.OpenSlide, uri: str) -> None:
    """Raise UnsupportedSlideError if the file has tiles larger than `FILE_TILE_PX`.

    OpenSlide decodes a whole tile of the file for any pixel of it, and ends the process if the memory is insufficient.
    """
    for level in range(handle.level_count):
        sides = [handle.properties.get(f"openslide.level[{level}].tile-{side}", "1") for side in ("width", "height")]
        if math.prod(int(side) for side in sides) > FILE_TILE_PX:
            raise UnsupportedSlideError(
                f"level {level} has tiles of {' x '.join(sides)} pixels; convert the slide to tiles of 256 to 4096",
                uri=uri,
            )


def _read_mpp(handle: openslide.OpenSlide) -> tuple[float, float] | None:
    try:
        x = float(handle.properties[openslide.PROPERTY_NAME_MPP_X])
        y = float(handle.properties[openslide.PROPERTY_NAME_MPP_Y])
    except (KeyError, ValueError):
        return None
    return (x, y) if math.isfinite(x) and math.isfinite(y) and x > 0 and y > 0 else None


def _read_background(handle: openslide.OpenSlide) -> tuple[int, int, int]:
    """Read the file's colour for places without pixels; default to `BACKGROUND`."""
    colour = handle.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "")
    if len(colour) != 6:
        return BACKGROUND, BACKGROUND, BACKGROUND
    return int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:], 16)
