"""What a slide is to its readers, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.slides.planning import Ints, TileGrid
from service.storage.counters import ReadCounters

Load = Callable[[], Iterator[tuple[int, NDArray[np.uint8]]]]
"""Brings some tiles of one level, each as its number and its RGB pixels (tile height, tile width, 3)."""


@dataclass(frozen=True, slots=True)
class LevelInfo:
    """One level of a pyramid."""

    size_px: tuple[int, int]
    """Width and height."""
    downsample: float
    """Level-0 pixels per level pixel, the mean of x and y."""


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """What is known of a slide without reading pixels. No text of the file's metadata is kept: it may name patients."""

    uri: str
    size_px: tuple[int, int]
    """Width and height of level 0."""
    levels: tuple[LevelInfo, ...]
    """Finest first."""
    mpp_xy: tuple[float, float] | None
    """Micrometres per level-0 pixel in x and y; None where the file does not say."""
    format: str
    """Such as ``aperio-svs``, or ``openslide:hamamatsu`` for what OpenSlide reads."""
    etag: str
    """Version of the file."""
    size_bytes: int


class SlideFile(Protocol):
    """An open slide. Threads may share it."""

    info: SlideInfo
    grids: tuple[TileGrid, ...]
    """One for each level of `info`."""
    held_bytes: int
    """Memory that it takes while it is open, estimated."""

    def index_loads(self, level: int, tiles: Ints, counters: ReadCounters) -> list[Callable[[], None]]:
        """Reads that must come before `tile_loads`, to know where tiles lie; none where that is known."""
        ...

    def tile_loads(self, level: int, tiles: Ints, counters: ReadCounters) -> list[Load]:
        """Reads that together bring these tiles, each once; every one fit to run in a thread of its own.

        Raises:
            MagnetError: with uri, level and, where one is at fault, tile; so do the loads.
        """
        ...


def slide_info(
    uri: str, grids: tuple[TileGrid, ...], mpp_xy: tuple[float, float] | None, kind: str, etag: str, size_bytes: int
) -> SlideInfo:
    """The description of a slide with these levels."""
    levels = tuple(LevelInfo(grid.size_px, (grid.step_xy[0] + grid.step_xy[1]) / 2) for grid in grids)
    return SlideInfo(uri, grids[0].size_px, levels, mpp_xy, kind, etag, size_bytes)
