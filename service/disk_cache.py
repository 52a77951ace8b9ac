"""Whole slides on the node's disk, for OpenSlide."""

from __future__ import annotations

from dataclasses import dataclass

from service.counters import ReadCounters
from service.errors import UnsupportedSlideError
from service.storage.ranges import LocalFile, RangeSource
from service.storage.uri import parse


@dataclass(frozen=True, slots=True)
class LocalCopy:
    """A file on this machine's disk that stays there as long as this object lives."""

    path: str


def local_copy(source: RangeSource, counters: ReadCounters) -> LocalCopy:
    """The slide as a local file, with the files that belong to it."""
    if isinstance(source, LocalFile):
        return LocalCopy(parse(source.uri).key)
    raise UnsupportedSlideError("copying to the disk cache is not built yet", uri=source.uri)
