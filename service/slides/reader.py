"""Regions of many slides in, windows of pixels out.

    with RegionReader() as reader:
        batch = reader.batch(uris)
        windows = batch.fetch(ask)

One reader serves a process; threads share it. A call plans all of its tiles before it reads any, so that duplicates
are dropped and near ranges joined; pixels do not depend on what else was asked for, or by whom.
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
"""Memory for windows that is kept for reuse; 400 windows of 224 px outputs."""
HEAD_BYTES = 64 << 10
"""First bytes of a remote slide, asked for with its size and ETag: every header begins there, some end there."""


class RegionReader:
    """Reads slides wherever they lie. Thread-safe; close it, or use it as a context manager.

    Args:
        tile_cache_bytes: decoded tiles kept in memory, 0 for none.
        num_threads: reads and decodes at the same time; 1: all in the calling thread.
        header_cache_bytes: open slides and pages of tile places kept in memory.
        disk_cache_bytes: compressed tiles and headers of remote slides kept on the node's disk, in the environment's
            MAGNET_CACHE_DIR, shared by its processes; 0 for none, None for the environment's MAGNET_TILE_CACHE_GB.
        deadline_s: seconds until a failing read is given up, retries included; None for the environment's.
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
                f"num_threads {num_threads} must be 1 or more, tile_cache_bytes {tile_cache_bytes}, header_cache_bytes"
                f" {header_cache_bytes} and disk_cache_bytes {disk_cache_bytes} 0 or more"
            )
        self._deadline_s = deadline_s
        self._files = OpenFiles()
        self._slides: ByteCache[SlideFile] = ByteCache(header_cache_bytes // 2, lambda slide: slide.held_bytes)
        self._index_cache: ByteCache[Ints] = ByteCache(header_cache_bytes // 2, _array_bytes)
        self._tile_cache: ByteCache[NDArray[np.uint8]] = ByteCache(tile_cache_bytes, _array_bytes)
        self._range_cache = _range_cache(disk_cache_bytes)
        self._executor = ThreadPoolExecutor(num_threads, "read") if num_threads > 1 else None
        self.buffers = BufferPool(BUFFER_BYTES)
        """Memory for windows."""
        self._loader = TileLoader(self._tile_cache, self._executor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for running reads, stop the threads, close files and forget everything held."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        for cache in (self._slides, self._index_cache, self._tile_cache):
            cache.clear()
        self.buffers.clear()
        self._files.close()
        if self._range_cache is not None:
            self._range_cache.close()

    def info(self, uri: str) -> SlideInfo:
        """Size, levels and resolution of a slide.

        Raises:
            MagnetError: it cannot be had or read; see `service.errors`.
        """
        return self.open(uri, ReadCounters()).info

    def batch(self, uris: Sequence[str]) -> SlideBatch:
        """The slides of one zoom batch, opened.

        Raises:
            MagnetError: the first that cannot be had or read, by its `uri`.
        """
        slides: list[SlideFile | None] = [None] * len(uris)
        counters = [ReadCounters() for _ in uris]

        def open_at(b: int) -> None:
            slides[b] = self.open(uris[b], counters[b])

        self._loader.run([partial(open_at, b) for b in range(len(uris))])
        return SlideBatch(self, [slide for slide in slides if slide is not None], counters)

    def thumbnail(self, uri: str, max_px: int, counters: ReadCounters | None = None) -> NDArray[np.uint8]:
        """The whole slide, without the padding to a square, reduced by the means of areas.

        Args:
            uri: the slide.
            max_px: longer side; smaller slides are not enlarged.
            counters: what it takes is added here.

        Returns:
            uint8 (h, w, 3), the longer of h and w at most `max_px`.
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
        """The current version of a slide, from the cache of headers where it is known."""
        slide = self._slides.get(uri)
        nothing_held = slide is None and self._range_cache is None
        began = time.perf_counter()
        source = open_source(uri, self._files, self._deadline_s, HEAD_BYTES if nothing_held else 0)
        if isinstance(source, RemoteObject):
            counters.add(ReadCounters(requests=1, bytes=len(source.head), wait_s=time.perf_counter() - began))
        if slide is None or slide.info.etag != source.etag:
            slide = open_slide(source, self._index_cache, self._range_cache, counters)
            source.head = b""  # the slide holds the source, but needs its start no more
            self._slides.put(uri, slide)
        return slide

    def paint(self, canvases: Sequence[tuple[SlideFile, int, Canvas, ReadCounters]]) -> None:
        """Bring the tiles of all canvases, given with their slides, levels and counters, each tile once."""
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for n, (slide, level, _, _) in enumerate(canvases):
            groups[slide.info.uri, level].append(n)
        requests = []
        for members in groups.values():
            slide, level, _, counters = canvases[members[0]]
            requests.append(_request(slide, level, [canvases[n][2] for n in members], counters))
        try:
            self._loader.load(requests)
        except SlideChangedError as error:
            for slide, *_ in canvases:
                if slide.info.uri == error.uri:
                    self._slides.drop(slide.info.uri)
            raise
        for _, _, canvas, _ in canvases:
            canvas.finish()


class SlideBatch:
    """The slides of one zoom batch; `fetch` is a `magnet.windows.Fetch`.

    Made by `RegionReader.batch`.
    """

    def __init__(self, reader: RegionReader, slides: Sequence[SlideFile], counters: list[ReadCounters]) -> None:
        self._reader = reader
        self._slides = slides
        self.counters = counters
        """What the reads of each slide took so far, its opening included."""
        self.info = [slide.info for slide in slides]
        """What is known of each slide."""
        self.side_px = np.array([root_side_px(info.size_px) for info in self.info], dtype=np.float64)
        """(B,) side of each root square in level-0 pixels."""

    def grids(self, b: int) -> tuple[TileGrid, ...]:
        """The levels of slide b and their tiles."""
        return self._slides[b].grids

    def fetch(self, ask: WindowRequest) -> Windows:
        """The windows that show these regions, in their order.

        Raises:
            MagnetError: a slide failed; its `uri` tells which. The others are not concerned and can be asked for again.
        """
        self._check(ask)
        num, side = len(ask.region), window_side_px(ask.out_px, ask.margin_px)
        pixels = self._reader.buffers.empty((num, side, side, 3))
        place = np.empty((num, 4), dtype=np.float64)
        downsample = np.empty(num, dtype=np.float64)
        canvases = []
        for b in np.unique(ask.slide).tolist():
            slide = self._slides[b]
            rows = np.flatnonzero(ask.slide == b)
            plan = plan_windows(slide.info.size_px, slide.grids, ask.region[rows], ask.out_px, ask.margin_px)
            place[rows], downsample[rows] = plan.place, plan.downsample
            for n, row in enumerate(rows.tolist()):
                canvases.append((slide, int(plan.level[n]), _canvas(slide, plan, n, pixels[row]), self.counters[b]))
            self.counters[b].add(ReadCounters(windows=len(rows)))
        self._reader.paint(canvases)
        return Windows(pixels=pixels, place=place, level=downsample)

    def _check(self, ask: WindowRequest) -> None:
        if ask.region.shape != (len(ask.slide), 3) or not np.isfinite(ask.region).all():
            raise UsageError(f"regions of shape {ask.region.shape} for {len(ask.slide)} slides: must be finite (N, 3)")
        if len(ask.region) and not (ask.region[:, 0].min() > 0 and np.abs(ask.region).max() < MAX_COORDINATE):
            raise UsageError(f"regions must have s above 0 and all numbers below {MAX_COORDINATE:g}")
        if len(ask.slide) and not (ask.slide.min() >= 0 and ask.slide.max() < len(self._slides)):
            raise UsageError(f"slide numbers {ask.slide.min()} to {ask.slide.max()}: the batch has {len(self._slides)}")
        if ask.out_px < 1 or ask.margin_px < 0:
            raise UsageError(f"out_px {ask.out_px} must be 1 or more, margin_px {ask.margin_px} 0 or more")


def _range_cache(max_bytes: int | None) -> RangeCache | None:
    settings = environment.cache_settings()
    most = settings.tile_bytes if max_bytes is None else max_bytes
    return RangeCache(settings.folder / "ranges", most) if most else None


def _array_bytes(array: NDArray[Any]) -> int:
    return array.nbytes


MAX_COORDINATE = 1e3
"""Root coordinates of a region; the slide lies within -1 and 1."""


def _canvas(slide: SlideFile, plan: WindowPlan, n: int, pixels: NDArray[np.uint8]) -> Canvas:
    left, top, right, bottom = plan.rect[n].tolist()
    high, wide = bottom - top, right - left
    pixels[high:], pixels[:high, wide:] = 0, 0
    out = pixels[:high, :wide]
    return Canvas(slide.grids[int(plan.level[n])], int(plan.factor[n]), (left, top, right, bottom), out)


def _request(slide: SlideFile, level: int, canvases: Sequence[Canvas], counters: ReadCounters) -> TileRequest:
    """All tiles that these canvases of one level want, each once, painted on each canvas that wants it."""
    wanted: dict[int, list[Canvas]] = defaultdict(list)
    for canvas in canvases:
        for tile in canvas.tiles.tolist():
            wanted[tile].append(canvas)

    def deliver(tile: int, pixels: NDArray[np.uint8]) -> None:
        for canvas in wanted[tile]:
            canvas.paint(tile, pixels)

    return TileRequest(slide, level, np.array(sorted(wanted), dtype=np.int64), deliver, counters)
