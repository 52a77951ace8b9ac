"""Description of a slide, and the interface of an open slide, independent of its format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.slides.planning import Ints, TileGrid
from service.storage.counters import ReadCounters

Load = Callable[[], Iterator[tuple[int, NDArray[np.uint8]]]]
"""Function that loads tiles of one level and yields their numbers and RGB pixels, uint8 (tile height, width, 3)."""


@dataclass(frozen=True, slots=True)
class LevelInfo:
    """One level of a pyramid."""

    size_px: tuple[int, int]
    """Width and height."""
    downsample: float
    """Level-0 pixels per level pixel, mean of x and y."""


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """Description of a slide from its header, without any text of the metadata: that may contain patient names."""

    uri: str
    """Path or URI."""
    size_px: tuple[int, int]
    """Width and height of level 0."""
    levels: tuple[LevelInfo, ...]
    """Levels of the pyramid, finest first."""
    mpp_xy: tuple[float, float] | None
    """Micrometres per level-0 pixel in x and y; None if the file does not contain it."""
    format: str
    """Name of the format, such as ``aperio-svs``, or ``openslide:hamamatsu`` for a format read by OpenSlide."""
    etag: str
    """Version of the file."""
    size_bytes: int
    """Size of the file."""


class SlideFile(Protocol):
    """An open slide in one version. Thread-safe."""

    info: SlideInfo
    """Description of the slide."""
    grids: tuple[TileGrid, ...]
    """Geometry of each level of `info`."""
    memory_bytes: int
    """Estimated memory that the open slide occupies."""

    def index_loads(self, level: int, tiles: Ints, counters: ReadCounters) -> list[Callable[[], None]]:
        """Return the reads of tile positions that must run before `tile_loads`; none if the positions are known."""
        ...

    def tile_loads(self, level: int, tiles: Ints, counters: ReadCounters) -> list[Load]:
        """Return reads that together load each of these tiles once; they may run in parallel threads.

        Args:
            level: pyramid level, 0 for the finest.
            tiles: (n,) distinct tile numbers.
            counters: the cost of the reads is added to these.

        Raises:
            MagnetError: the error has uri, level and, if one tile is the cause, the tile. The loads raise it too.
        """
        ...


def describe_slide(
    uri: str, grids: tuple[TileGrid, ...], mpp_xy: tuple[float, float] | None, kind: str, etag: str, size_bytes: int
) -> SlideInfo:
    """Build the description of a slide with these levels."""
    levels = tuple(LevelInfo(grid.size_px, (grid.step_xy[0] + grid.step_xy[1]) / 2) for grid in grids)
    return SlideInfo(uri, grids[0].size_px, levels, mpp_xy, kind, etag, size_bytes)
