"""A remote slide whose header and compressed tiles are cached on the node's disk."""

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
    """A `RangeSource` that looks in a disk cache first, and stores there what it reads.

    Args:
        source: one version of a remote object.
        cache: disk cache, shared by all slides.
    """

    def __init__(self, source: RangeSource, cache: RangeCache) -> None:
        self.uri, self.size_bytes, self.etag, self.head = source.uri, source.size_bytes, source.etag, source.head
        self._source = source
        self._cache = cache
        # Ranges of another version of the slide must have another key.
        self._version = hashlib.sha256(f"{self.uri}\0{self.etag}\0{self.size_bytes}".encode()).digest()

    def contains(self, offset: Ints, length: Ints) -> NDArray[np.bool_]:
        """Return which ranges are cached at this moment; bool (n,), for `offset` and `length` of shape (n,)."""
        return self._cache.contains(self._version, offset, length)

    def read(self, offset: int, length: int, counters: ReadCounters) -> bytes:
        """See `RangeSource.read`."""
        start_s = time.perf_counter()
        data = self._cache.get(self._version, offset, length)
        if data is None:
            return self.read_joined(offset, length, [(offset, length)], counters)
        counters.add(ReadCounters(disk_hits=1, wait_s=time.perf_counter() - start_s))
        return data

    def read_joined(self, offset: int, length: int, parts: Sequence[tuple[int, int]], counters: ReadCounters) -> bytes:
        """Read a range from the source, and cache these parts of it one by one.

        The next read may need other tiles, so that it would not ask for the same joined range.

        Args:
            offset: first byte of the range.
            length: number of bytes.
            parts: first byte and number of bytes of each part.
            counters: the cost of the read is added to these.
        """
        data = self._source.read(offset, length, counters)
        ranges = [(start, data[start - offset : start - offset + size]) for start, size in dict.fromkeys(parts)]
        self._cache.put(self._version, ranges)
        return data
