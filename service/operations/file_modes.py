"""Modes of files that hold secrets."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

MOUNTED = "/run/secrets"
"""Where container engines mount secrets."""
ENTER = stat.S_IXGRP | stat.S_IXOTH
"""Of a folder: without it, other users cannot open what is in it."""
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def open_to_others(paths: Iterable[Path]) -> list[Path]:
    """Which of these files and folders their group or all users may use; those that do not exist are left out.

    A folder that is closed protects what is below it; of an open one, files and folders directly below it are checked.
    Secrets that a container engine mounts are left out: nobody else is in the container.
    """
    found = []
    for path in paths:
        if not path.exists() or not os.stat(path).st_mode & OTHERS:
            continue
        if path.is_relative_to(MOUNTED) or (path.is_file() and not os.stat(path.parent).st_mode & ENTER):
            continue
        found.append(path)
        found += [inner for inner in sorted(path.iterdir()) if inner.stat().st_mode & OTHERS] if path.is_dir() else []
    return found
