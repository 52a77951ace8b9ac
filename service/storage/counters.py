"""Counts of what reading a slide took; they end in the tracking server and in the table of scores."""

from __future__ import annotations

import threading
from dataclasses import dataclass

_lock = threading.Lock()


@dataclass(slots=True)
class ReadCounters:
    """What the reads of one slide took so far. Times are summed over threads."""

    requests: int = 0
    """Ranges asked of the storage, headers included, retries not."""
    bytes: int = 0
    """Bytes that came for them."""
    tiles: int = 0
    """Tiles decoded."""
    cache_hits: int = 0
    """Tiles that were at hand, decoded."""
    disk_hits: int = 0
    """Tiles and parts of headers that lay on the node's disk, compressed."""
    decode_s: float = 0.0
    """Seconds spent decoding."""
    wait_s: float = 0.0
    """Seconds spent waiting for storage, the node's disk included."""
    windows: int = 0
    """Windows delivered."""

    def add(
        self,
        *,
        requests: int = 0,
        bytes: int = 0,
        tiles: int = 0,
        cache_hits: int = 0,
        disk_hits: int = 0,
        decode_s: float = 0.0,
        wait_s: float = 0.0,
        windows: int = 0,
    ) -> None:
        """Add to several counts at once; threads may call this at the same time."""
        with _lock:
            self.requests += requests
            self.bytes += bytes
            self.tiles += tiles
            self.cache_hits += cache_hits
            self.disk_hits += disk_hits
            self.decode_s += decode_s
            self.wait_s += wait_s
            self.windows += windows
