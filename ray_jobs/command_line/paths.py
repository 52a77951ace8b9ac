"""Paths and URIs that a user gives to a command."""

from __future__ import annotations

import os
from pathlib import Path

HOME_RUNS = "~/magnet-runs"
"""Storage folder if neither --storage nor MAGNET_STORAGE names one."""


def to_absolute(place: str) -> str:
    """Return a path in its absolute form, so that it means the same to workers elsewhere; URIs stay as they are."""
    return place if "://" in place else str(Path(place).expanduser().resolve())


def storage_folder(option: str | None) -> str:
    """Return the folder of a job's runs: --storage, MAGNET_STORAGE or a folder in the user's home.

    Args:
        option: value of --storage; None if it was not given.
    """
    return to_absolute(option or os.environ.get("MAGNET_STORAGE") or HOME_RUNS)
