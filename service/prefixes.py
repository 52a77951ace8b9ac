"""Whether a place lies below one of some prefixes, whatever it is written like."""

from __future__ import annotations

import os
from collections.abc import Iterable

from service.errors import UsageError
from service.storage.uri import parse


def is_below(place: str, prefixes: Iterable[str]) -> bool:
    """Whether a path or URI lies in one of some folders.

    Links and ".." are followed first on disk; a name with ".." in a store lies nowhere. A prefix is a folder:
    s3://lab/a has s3://lab/a/x below it, not s3://lab/ab.
    """
    own = _parts(place)
    return own is not None and any(own[: len(p)] == p for prefix in prefixes if (p := _parts(prefix)) is not None)


def _parts(place: str) -> list[str] | None:
    """Scheme, host and folders; None for what is no place."""
    try:
        location = parse(place)
    except UsageError:
        return None
    if location.scheme == "file":
        try:
            key = os.path.realpath(location.key)
        except ValueError:  # a null character
            return None
    else:
        key = location.key
    folders = [part for part in key.split("/") if part]
    if any(part in (".", "..") for part in folders):
        return None
    return [location.scheme, location.host, *folders]
