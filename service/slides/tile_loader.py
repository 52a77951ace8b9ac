"""Tiles of many slides at once: from the cache, from another thread's read, or from storage, decoded in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, wait
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.slides.byte_cache import ByteCache
from service.slides.planning import Ints
from service.slides.slide import Load, SlideFile
from service.storage.counters import ReadCounters

Pixels = NDArray[np.uint8]
Task = Callable[[], None]


@dataclass(frozen=True, slots=True)
class TileRequest:
    """Tiles of one level of one slide."""

    slide: SlideFile
    level: int
    tiles: Ints
    """(n,) numbers, each once."""
    deliver: Callable[[int, Pixels], None]
    """Is called once for each tile, with its number and pixels, from any thread."""
    counters: ReadCounters

    def key(self, tile: int) -> Hashable:
        """What the cache knows a tile by."""
        return self.slide.info.uri, self.slide.info.etag, self.level, tile


class TileLoader:
    """Loads tiles through a cache of decoded ones; a tile that two threads want at once is read by one of them.

    Bytes in flight are bounded: each thread holds one merged range at a time.

    Args:
        cache: decoded tiles.
        executor: where reads and decoding run; None: in the calling thread.
    """

    def __init__(self, cache: ByteCache[Pixels], executor: Executor | None) -> None:
        self._cache = cache
        self._executor = executor
        self._lock = threading.Lock()
        self._in_flight: dict[Hashable, threading.Event] = {}

    def load(self, requests: Sequence[TileRequest]) -> None:
        """Deliver all tiles of all requests.

        Raises:
            MagnetError: the first failure; reads that had not begun are dropped.
        """
        while requests:
            requests, foreign = self._load_unclaimed(requests)
            for event in foreign:
                event.wait()

    def run(self, tasks: Sequence[Task]) -> None:
        """Run tasks, in threads where there are any; the first failure is raised when none is running any more."""
        if self._executor is None or len(tasks) < 2:
            for task in tasks:
                task()
            return
        futures = [self._executor.submit(task) for task in tasks]
        _, unfinished = wait(futures, return_when=FIRST_EXCEPTION)
        for future in unfinished:
            future.cancel()
        wait(unfinished)
        for future in futures:
            if not future.cancelled():
                future.result()

    def _load_unclaimed(self, requests: Sequence[TileRequest]) -> tuple[list[TileRequest], set[threading.Event]]:
        """Load what nobody else is loading; give back the rest, and what to wait for before trying those."""
        done = threading.Event()
        claimed: list[TileRequest] = []
        left: list[TileRequest] = []
        foreign: set[threading.Event] = set()
        keys: list[Hashable] = []
        try:
            for request in requests:
                mine, others = self._claim(request, done, keys, foreign)
                if len(mine):
                    claimed.append(_part(request, mine))
                if len(others):
                    left.append(_part(request, others))
            self._read(claimed)
        finally:
            with self._lock:
                for key in keys:
                    del self._in_flight[key]
            done.set()
        return left, foreign

    def _claim(
        self, request: TileRequest, done: threading.Event, keys: list[Hashable], foreign: set[threading.Event]
    ) -> tuple[list[int], list[int]]:
        """Deliver what the cache holds; sort the rest into tiles to read here and tiles that another thread reads."""
        mine, others, hits = [], [], []
        with self._lock:
            for tile in request.tiles.tolist():
                key = request.key(tile)
                pixels = self._cache.get(key)
                if pixels is not None:
                    hits.append((tile, pixels))
                elif (event := self._in_flight.setdefault(key, done)) is done:
                    keys.append(key)
                    mine.append(tile)
                else:
                    foreign.add(event)
                    others.append(tile)
        for tile, pixels in hits:
            request.deliver(tile, pixels)
        request.counters.add(ReadCounters(cache_hits=len(hits)))
        return mine, others

    def _read(self, requests: Sequence[TileRequest]) -> None:
        self.run([task for r in requests for task in r.slide.index_loads(r.level, r.tiles, r.counters)])
        tasks: list[Task] = []
        for request in requests:
            for load in request.slide.tile_loads(request.level, request.tiles, request.counters):
                tasks.append(partial(self._bring, request, load))
        self.run(tasks)

    def _bring(self, request: TileRequest, load: Load) -> None:
        for tile, pixels in load():
            self._cache.put(request.key(tile), pixels)
            request.deliver(tile, pixels)


def _part(request: TileRequest, tiles: list[int]) -> TileRequest:
    return TileRequest(request.slide, request.level, np.array(tiles, dtype=np.int64), request.deliver, request.counters)
