"""Loading of tiles of many slides at once: from the cache, from another thread's read, or from storage."""

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
    """Request for tiles of one level of one slide."""

    slide: SlideFile
    """Open slide."""
    level: int
    """Pyramid level, 0 for the finest."""
    tiles: Ints
    """(n,) distinct tile numbers."""
    deliver: Callable[[int, Pixels], None]
    """Callback, called once for each tile with its number and pixels, from any thread."""
    counters: ReadCounters
    """Counters to which the cost of the reads is added."""

    def cache_key(self, tile: int) -> Hashable:
        """Return the key of a tile in the cache of decoded tiles."""
        return self.slide.info.uri, self.slide.info.etag, self.level, tile


class TileLoader:
    """Loads tiles through a cache of decoded tiles; a tile that two threads need at once is read by one of them.

    The memory for compressed bytes is limited, because each thread has one merged range at a time.

    Args:
        cache: cache of decoded tiles.
        executor: threads for reading and decoding; None uses the calling thread.
    """

    def __init__(self, cache: ByteCache[Pixels], executor: Executor | None) -> None:
        self._cache = cache
        self._executor = executor
        self._lock = threading.Lock()
        self._in_flight: dict[Hashable, threading.Event] = {}

    def load(self, requests: Sequence[TileRequest]) -> None:
        """Deliver all tiles of all requests.

        Raises:
            MagnetError: the first failure; reads that have not started are dropped.
        """
        while requests:
            # After waiting, the tiles of other threads are in the cache, or else they are loaded here: the other thread
            # may have failed, or the cache may be too small.
            requests, other_loads = self._load_unclaimed(requests)
            for finished in other_loads:
                finished.wait()

    def run(self, tasks: Sequence[Task]) -> None:
        """Run tasks, in the threads if there are any; raise the first failure after all running tasks have ended."""
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
        """Load the tiles that no other thread is loading.

        Returns:
            Requests for the other tiles, and the events to wait for before trying those again.
        """
        finished = threading.Event()
        claimed: list[TileRequest] = []
        remaining: list[TileRequest] = []
        other_loads: set[threading.Event] = set()
        keys: list[Hashable] = []
        try:
            for request in requests:
                claimed_tiles, other_tiles = self._claim(request, finished, keys, other_loads)
                if claimed_tiles:
                    claimed.append(_select_tiles(request, claimed_tiles))
                if other_tiles:
                    remaining.append(_select_tiles(request, other_tiles))
            self._read(claimed)
        finally:
            # Also after a failure, so that the threads that wait for these tiles can load them.
            with self._lock:
                for key in keys:
                    del self._in_flight[key]
            finished.set()
        return remaining, other_loads

    def _claim(
        self, request: TileRequest, finished: threading.Event, keys: list[Hashable], other_loads: set[threading.Event]
    ) -> tuple[list[int], list[int]]:
        """Deliver the cached tiles; claim those that no other thread is loading.

        Args:
            request: tiles to load.
            finished: event of this thread's load.
            keys: the keys of the claimed tiles are appended here.
            other_loads: the events of the other threads' loads are added here.

        Returns:
            Numbers of the claimed tiles, and of the tiles that other threads are loading.
        """
        claimed, others, hits = [], [], []
        with self._lock:
            for tile in request.tiles.tolist():
                key = request.cache_key(tile)
                pixels = self._cache.get(key)
                if pixels is not None:
                    hits.append((tile, pixels))
                elif (event := self._in_flight.setdefault(key, finished)) is finished:
                    keys.append(key)
                    claimed.append(tile)
                else:
                    other_loads.add(event)
                    others.append(tile)
        for tile, pixels in hits:  # outside the lock, because painting takes time
            request.deliver(tile, pixels)
        request.counters.add(ReadCounters(cache_hits=len(hits)))
        return claimed, others

    def _read(self, requests: Sequence[TileRequest]) -> None:
        # The positions of all tiles must be known before their ranges can be merged.
        self.run([task for r in requests for task in r.slide.index_loads(r.level, r.tiles, r.counters)])
        tasks: list[Task] = []
        for request in requests:
            for load in request.slide.tile_loads(request.level, request.tiles, request.counters):
                tasks.append(partial(self._run_load, request, load))
        self.run(tasks)

    def _run_load(self, request: TileRequest, load: Load) -> None:
        for tile, pixels in load():
            self._cache.put(request.cache_key(tile), pixels)
            request.deliver(tile, pixels)


def _select_tiles(request: TileRequest, tiles: list[int]) -> TileRequest:
    return TileRequest(request.slide, request.level, np.array(tiles, dtype=np.int64), request.deliver, request.counters)
