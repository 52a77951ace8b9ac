"""Counts of what reading a slide cost; they are logged to MLflow and written to the score table."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields

# One lock for all counters: an addition is short, and a lock per object could not be pickled to another process.
_lock = threading.Lock()


@dataclass(slots=True)
class ReadCounters:
    """What the reads of one slide have cost so far. Times are summed over threads."""

    requests: int = 0
    """Range requests sent to storage, including headers and excluding retries."""
    bytes: int = 0
    """Bytes received for those requests."""
    tiles: int = 0
    """Tiles decoded."""
    cache_hits: int = 0
    """Tiles taken decoded from memory."""
    disk_hits: int = 0
    """Tiles and parts of headers taken compressed from the node's disk."""
    decode_s: float = 0.0
    """Seconds spent decoding."""
    wait_s: float = 0.0
    """Seconds spent waiting for storage, including the node's disk."""
    windows: int = 0
    """Windows delivered."""

    def add(self, increment: ReadCounters) -> None:
        """Add other counters to these, field by field; threads may call this at the same time."""
        with _lock:
            for counter in fields(self):
                setattr(self, counter.name, getattr(self, counter.name) + getattr(increment, counter.name))
