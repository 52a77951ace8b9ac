"""Modes of files that hold secrets."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

CONTAINER_SECRETS = "/run/secrets"
"""Folder in which container engines mount secrets."""
ENTER = stat.S_IXGRP | stat.S_IXOTH
"""Mode bits of a folder without which other users cannot open the files in it."""
OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""Mode bits of the file's group and of all other users."""


def find_exposed(paths: Iterable[Path]) -> list[Path]:
    """Return the files and folders that their group or all users may use.

    A closed folder protects what is in it; of an open folder, the files and folders directly in it are checked too.
    Secrets that a container engine mounts are skipped, since the container has no other users.

    Args:
        paths: files and folders; those that do not exist are skipped.
    """
    exposed = []
    for path in paths:
        if not path.exists() or not os.stat(path).st_mode & OTHERS:
            continue
        if path.is_relative_to(CONTAINER_SECRETS) or (path.is_file() and not os.stat(path.parent).st_mode & ENTER):
            continue
        exposed.append(path)
        exposed += [inner for inner in sorted(path.iterdir()) if inner.stat().st_mode & OTHERS] if path.is_dir() else []
    return exposed
