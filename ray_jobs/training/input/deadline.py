"""How long the reads and writes of a training are retried while the object store fails."""

from __future__ import annotations

from service import environment

STORE_DEADLINE_S = 300.0
"""Seconds until a training gives up a read or write: well below the 1800 s after which a collective times out."""


def get_store_deadline_s() -> float:
    """Return the seconds until a read or write is given up: the user's setting, where that is longer."""
    return max(STORE_DEADLINE_S, environment.read_storage_deadline_s())
