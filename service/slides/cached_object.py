"""A remote slide whose header and compressed tiles are kept on the node's disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.slides.planning import Ints
from service.slides.range_cache import RangeCache
from service.storage.counters import ReadCounters
from service.storage.ranges import RangeSource


class CachedObject:
    """A `RangeSource` that asks the cache first and keeps there what it reads.

    Args:
        source: one version of a remote object.
        cache: shared by all slides.
    """

    def __init__(self, source: RangeSource, cache: RangeCache) -> None:
        self.uri, self.size_bytes, self.etag, self.head = source.uri, source.size_bytes, source.etag, source.head
        self._source = source
        self._cache = cache
        self._version = hashlib.sha256(f"{self.uri}\0{self.etag}\0{self.size_bytes}".encode()).digest()

    def held(self, offset: Ints, length: Ints) -> NDArray[np.bool_]:
        """(n,) which of these ranges `read` would bring without a request, unless they are evicted meanwhile."""
        return self._cache.held(self._version, offset, length)

    def read(self, offset: int, length: int, counters: ReadCounters) -> bytes:
        """See `RangeSource.read`."""
        began = time.perf_counter()
        data = self._cache.get(self._version, offset, length)
        if data is None:
            return self.read_joined(offset, length, [(offset, length)], counters)
        counters.add(ReadCounters(disk_hits=1, wait_s=time.perf_counter() - began))
        return data

    def read_joined(self, offset: int, length: int, parts: Sequence[tuple[int, int]], counters: ReadCounters) -> bytes:
        """A range from the source, of which these parts will be asked for alone the next time."""
        data = self._source.read(offset, length, counters)
        kept = [(start, data[start - offset : start - offset + size]) for start, size in dict.fromkeys(parts)]
        self._cache.put(self._version, kept)
        return data
