"""The reader: it returns windows of pixels for regions of many slides.

    with RegionReader() as reader:
        batch = reader.batch(uris)
        windows = batch.fetch(request)

One reader serves all threads of a process. A call plans all of its tiles before it reads any, so that each tile is read
once and neighbouring ranges are joined. The pixels of a window do not depend on other regions or other callers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from magnet.regions import ROOT, root_side_px
from magnet.windows import WindowRequest, Windows, window_side_px
from service import environment
from service.errors import SlideChangedError, UsageError
from service.slides.buffer_pool import BufferPool
from service.slides.byte_cache import ByteCache
from service.slides.opening import open_slide
from service.slides.painting import Canvas, reduce_area
from service.slides.planning import Ints, TileGrid, WindowPlan, plan_windows
from service.slides.range_cache import RangeCache
from service.slides.slide import SlideFile, SlideInfo
from service.slides.tile_loader import TileLoader, TileRequest
from service.storage.counters import ReadCounters
from service.storage.ranges import OpenFiles, RemoteObject, open_source

__all__ = ["ReadCounters", "RegionReader", "SlideBatch", "SlideInfo"]

BUFFER_BYTES = 256 << 20
"""Limit of the unused memory for windows that is kept for reuse; enough for 400 windows of 224 px outputs."""
HEAD_BYTES = 64 << 10
"""Number of first bytes of a remote slide, read together with its size and ETag: a small header is complete then."""


class RegionReader:
    """Reads slides from files and stores. Thread-safe; close it, or use it as a context manager.

    Args:
        tile_cache_bytes: size of the cache for decoded tiles in memory; 0 for none.
        num_threads: number of threads that read and decode, 1 or more; with 1, the calling thread does it.
        header_cache_bytes: size of the cache for open slides and pages of tile positions in memory.
        disk_cache_bytes: size of the cache for compressed tiles and headers of remote slides on the node's disk, in the
            folder MAGNET_CACHE_DIR, shared by its processes; 0 for none, None for MAGNET_TILE_CACHE_GB.
        deadline_s: time limit of a failing read in seconds, including retries; None uses the limit of the environment.

    Raises:
        UsageError: an argument is out of range, or the folder of the disk cache is unusable.
    """

    def __init__(
        self,
        tile_cache_bytes: int = 256 << 20,
        num_threads: int = 16,
        *,
        header_cache_bytes: int = 64 << 20,
        disk_cache_bytes: int | None = None,
        deadline_s: float | None = None,
    ) -> None:
        if num_threads < 1 or min(tile_cache_bytes, header_cache_bytes, disk_cache_bytes or 0) < 0:
            raise UsageError(
                f"num_threads {num_threads} must be 1 or more; tile_cache_bytes {tile_cache_bytes}, header_cache_bytes"
                f" {header_cache_bytes} and disk_cache_bytes {disk_cache_bytes} must be 0 or more"
            )
        self._deadline_s = deadline_s
        self._files = OpenFiles()
        self._slides: ByteCache[SlideFile] = ByteCache(header_cache_bytes // 2, lambda slide: slide.memory_bytes)
        self._index_cache: ByteCache[Ints] = ByteCache(header_cache_bytes // 2, _array_bytes)
        self._tile_cache: ByteCache[NDArray[np.uint8]] = ByteCache(tile_cache_bytes, _array_bytes)
        self._range_cache = _open_range_cache(disk_cache_bytes)
        self._executor = ThreadPoolExecutor(num_threads, "read") if num_threads > 1 else None
        self.buffers = BufferPool(BUFFER_BYTES)
        """Pool of memory for windows."""
        self._loader = TileLoader(self._tile_cache, self._executor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for running reads, stop the threads, close the files and clear the caches."""
        # The threads end first, because they use the caches and files that are closed below.
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        for cache in (self._slides, self._index_cache, self._tile_cache):
            cache.clear()
        self.buffers.clear()
        self._files.close()
        if self._range_cache is not None:
            self._range_cache.close()

    def info(self, uri: str) -> SlideInfo:
        """Return size, levels and resolution of a slide.

        Raises:
            MagnetError: the slide cannot be opened; see `service.errors`.
        """
        return self.open(uri, ReadCounters()).info

    def batch(self, uris: Sequence[str]) -> SlideBatch:
        """Open the slides of one zoom batch.

        Raises:
            MagnetError: the first slide that cannot be opened, named by `uri`.
        """
        slides: list[SlideFile | None] = [None] * len(uris)
        counters = [ReadCounters() for _ in uris]

        def open_at(b: int) -> None:
            slides[b] = self.open(uris[b], counters[b])

        self._loader.run([partial(open_at, b) for b in range(len(uris))])
        return SlideBatch(self, [slide for slide in slides if slide is not None], counters)

    def thumbnail(self, uri: str, max_px: int, counters: ReadCounters | None = None) -> NDArray[np.uint8]:
        """Read the whole slide, without the padding to a square, reduced by area means.

        Args:
            uri: the slide.
            max_px: limit of the longer side in pixels, 1 or more; smaller slides are not enlarged.
            counters: the cost of the reads is added to these; None discards it.

        Returns:
            uint8 (h, w, 3), the longer of h and w at most `max_px`.

        Raises:
            MagnetError: the slide cannot be opened or read.
            UsageError: `max_px` is below 1.
        """
        if max_px < 1:
            raise UsageError(f"max_px {max_px} must be 1 or more", uri=uri)
        counters = ReadCounters() if counters is None else counters
        slide = self.open(uri, counters)
        size_px = slide.info.size_px
        out_px = min(max_px, root_side_px(size_px))
        plan = plan_windows(size_px, slide.grids, ROOT[None], out_px, margin_px=0)
        level, factor = int(plan.level[0]), int(plan.factor[0])
        grid = slide.grids[level]
        wide, high = (-(-side // factor) for side in grid.size_px)
        image = np.zeros((high, wide, 3), dtype=np.uint8)
        self.paint([(slide, level, Canvas(grid, factor, (0, 0, wide, high), image), counters)])
        extent = grid.size_px[0] / factor, grid.size_px[1] / factor
        size = tuple(max(1, round(side * out_px / root_side_px(size_px))) for side in size_px)
        return reduce_area(image, extent, (size[0], size[1]))

    def open(self, uri: str, counters: ReadCounters) -> SlideFile:
        """Open the current version of a slide, or take it from the cache if that version is cached.

        Args:
            uri: the slide.
            counters: the cost of opening is added to these.

        Raises:
            MagnetError: the slide cannot be opened.
        """
        slide = self._slides.get(uri)
        # The first bytes are useful only if no cache can have the header.
        is_uncached = slide is None and self._range_cache is None
        start_s = time.perf_counter()
        source = open_source(uri, self._files, self._deadline_s, HEAD_BYTES if is_uncached else 0)
        if isinstance(source, RemoteObject):
            counters.add(ReadCounters(requests=1, bytes=len(source.head), wait_s=time.perf_counter() - start_s))
        if slide is None or slide.info.etag != source.etag:
            slide = open_slide(source, self._index_cache, self._range_cache, counters)
            source.head = b""  # the slide refers to the source, but does not need its first bytes again
            self._slides.put(uri, slide)
        return slide

    def paint(self, canvases: Sequence[tuple[SlideFile, int, Canvas, ReadCounters]]) -> None:
        """Load the tiles of all canvases, each tile once, and paint them.

        Args:
            canvases: canvases with their slides, levels and counters.

        Raises:
            MagnetError: a slide failed.
        """
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for n, (slide, level, _, _) in enumerate(canvases):
            groups[slide.info.uri, level].append(n)
        # A slide that is in the batch twice is read once, and the cost counts for its first entry.
        tile_requests = []
        for members in groups.values():
            slide, level, _, counters = canvases[members[0]]
            tile_requests.append(_request_tiles(slide, level, [canvases[n][2] for n in members], counters))
        try:
            self._loader.load(tile_requests)
        except SlideChangedError as error:  # the next call to `open` must look up the new version
            for slide, *_ in canvases:
                if slide.info.uri == error.uri:
                    self._slides.drop(slide.info.uri)
            raise
        for _, _, canvas, _ in canvases:
            canvas.finish()


class SlideBatch:
    """The open slides of one zoom batch, created by `RegionReader.batch`; `fetch` is a `magnet.windows.Fetch`."""

    def __init__(self, reader: RegionReader, slides: Sequence[SlideFile], counters: list[ReadCounters]) -> None:
        self._reader = reader
        self._slides = slides
        self.counters = counters
        """Cost of the reads of each slide so far, including its opening."""
        self.info = [slide.info for slide in slides]
        """Descriptions of the slides."""
        self.side_px = np.array([root_side_px(info.size_px) for info in self.info], dtype=np.float64)
        """(B,) side of each root square in level-0 pixels."""

    def grids(self, b: int) -> tuple[TileGrid, ...]:
        """Return the geometry of the levels of slide b."""
        return self._slides[b].grids

    def fetch(self, request: WindowRequest) -> Windows:
        """Read the windows that show these regions, in their order.

        Raises:
            MagnetError: a slide failed, which the error names by `uri`. The other slides can be requested again.
            UsageError: the request is invalid.
        """
        self._check(request)
        out_px, margin_px = request.out_px, request.margin_px
        num, side = len(request.region), window_side_px(out_px, margin_px)
        pixels = self._reader.buffers.empty((num, side, side, 3))
        place = np.empty((num, 4), dtype=np.float64)
        downsample = np.empty(num, dtype=np.float64)
        canvases = []
        for b in np.unique(request.slide).tolist():
            slide = self._slides[b]
            rows = np.flatnonzero(request.slide == b)
            plan = plan_windows(slide.info.size_px, slide.grids, request.region[rows], out_px, margin_px)
            place[rows], downsample[rows] = plan.place, plan.downsample
            for n, row in enumerate(rows.tolist()):
                canvas = _make_canvas(slide, plan, n, pixels[row])
                canvases.append((slide, int(plan.level[n]), canvas, self.counters[b]))
            self.counters[b].add(ReadCounters(windows=len(rows)))
        self._reader.paint(canvases)
        return Windows(pixels=pixels, place=place, level=downsample)

    def _check(self, request: WindowRequest) -> None:
        region, slide = request.region, request.slide
        if region.shape != (len(slide), 3) or not np.isfinite(region).all():
            raise UsageError(f"regions of shape {region.shape} for {len(slide)} slides: must be finite (N, 3)")
        if len(region) and not (region[:, 0].min() > 0 and np.abs(region).max() < MAX_COORDINATE):
            raise UsageError(f"regions must have s above 0 and all numbers below {MAX_COORDINATE:g}")
        if len(slide) and not (slide.min() >= 0 and slide.max() < len(self._slides)):
            raise UsageError(f"slide numbers {slide.min()} to {slide.max()}: the batch has {len(self._slides)} slides")
        if request.out_px < 1 or request.margin_px < 0:
            raise UsageError(f"out_px {request.out_px} must be 1 or more, margin_px {request.margin_px} 0 or more")


def _open_range_cache(max_bytes: int | None) -> RangeCache | None:
    settings = environment.read_cache_settings()
    limit = settings.tile_bytes if max_bytes is None else max_bytes
    return RangeCache(settings.folder / "ranges", limit) if limit else None


def _array_bytes(array: NDArray[Any]) -> int:
    return array.nbytes


MAX_COORDINATE = 1e3
"""Limit of a region's root coordinates; the slide itself is between -1 and 1."""


def _make_canvas(slide: SlideFile, plan: WindowPlan, n: int, pixels: NDArray[np.uint8]) -> Canvas:
    left, top, right, bottom = plan.rect[n].tolist()
    high, wide = bottom - top, right - left
    pixels[high:], pixels[:high, wide:] = 0, 0  # the memory is reused and has old values
    out = pixels[:high, :wide]
    return Canvas(slide.grids[int(plan.level[n])], int(plan.factor[n]), (left, top, right, bottom), out)


def _request_tiles(slide: SlideFile, level: int, canvases: Sequence[Canvas], counters: ReadCounters) -> TileRequest:
    """Request each tile of these canvases of one level once; paint it on all canvases that need it."""
    canvases_of_tile: dict[int, list[Canvas]] = defaultdict(list)
    for canvas in canvases:
        for tile in canvas.tiles.tolist():
            canvases_of_tile[tile].append(canvas)

    def deliver(tile: int, pixels: NDArray[np.uint8]) -> None:
        for canvas in canvases_of_tile[tile]:
            canvas.paint(tile, pixels)

    return TileRequest(slide, level, np.array(sorted(canvases_of_tile), dtype=np.int64), deliver, counters)
