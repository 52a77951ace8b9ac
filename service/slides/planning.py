"""From regions to windows, from windows to tiles, from tiles to byte ranges: pure functions, no storage, no pixels.

Pixels of a level lie on a grid fixed to the level. Where a level has too many pixels for an output, `factor` x
`factor` of them are averaged to one *virtual* pixel; the virtual grid starts at the level's corner as well, so which
pixels exist does not depend on who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magnet.regions import root_side_px, to_level0
from magnet.windows import MAX_STEP

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Geometry of one level and its tiles."""

    size_px: tuple[int, int]
    """Width and height of the part that shows the slide; padding to whole tiles does not count."""
    tile_px: tuple[int, int]
    """Width and height of a tile."""
    num_columns: int
    """Columns of tiles in the file; tiles are numbered row by row."""
    step_xy: tuple[float, float]
    """Level-0 pixels per level pixel, in x and y."""


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Where the windows of N regions of one slide lie."""

    level: Ints
    """(N,) level read, 0 the finest."""
    factor: Ints
    """(N,) level pixels per side that are averaged to one virtual pixel."""
    rect: Ints
    """(N, 4) left, top, right, bottom in virtual pixels, right and bottom excluded; may reach over the border."""
    place: Floats
    """(N, 4) left, top, width and height of a virtual pixel, in root coordinates."""
    downsample: Floats
    """(N,) level-0 pixels per virtual pixel (the mean of x and y)."""


def plan_windows(
    size_px: tuple[int, int], levels: Sequence[TileGrid], region: Floats, out_px: int, margin_px: int
) -> WindowPlan:
    """The windows that show regions of one slide.

    The level is the coarsest that still gives a pixel for each output pixel, level 0 beyond native resolution; where
    it gives `MAX_STEP` or more, its pixels are averaged in powers of two until they are fewer.

    Args:
        size_px: width and height of level 0.
        levels: the pyramid, finest first.
        region: (N, 3) in root coordinates.
        out_px: side of the output in pixels.
        margin_px: virtual pixels wanted around each region.
    """
    box = to_level0(region, size_px)  # N, 3
    steps = np.array([level.step_xy for level in levels])  # L, 2
    level = _coarsest_level(box[:, 2], steps, out_px)
    coarser = box[:, 2] / (steps[level].min(axis=1) * out_px * MAX_STEP)
    factor = 2 ** np.maximum(0, np.floor(np.log2(np.maximum(coarser, 0.5))) + 1).astype(np.int64)
    pixel = steps[level] * factor[:, None]  # N, 2: level-0 pixels per virtual pixel
    low = np.floor(box[:, :2] / pixel - margin_px).astype(np.int64)
    high = np.ceil((box[:, :2] + box[:, 2:]) / pixel + margin_px).astype(np.int64)
    side = root_side_px(size_px)
    padding = (side - np.array(size_px)) / 2
    corner = (low * pixel + padding) * 2 / side - 1
    return WindowPlan(
        level=level,
        factor=factor,
        rect=np.concatenate([low, high], axis=1),
        place=np.concatenate([corner, pixel * 2 / side], axis=1),
        downsample=pixel.mean(axis=1),
    )


def _coarsest_level(box_side: Floats, steps: Floats, out_px: int) -> Ints:
    """(N,) for each box the last level whose pixels are no larger than the output's."""
    suffices = box_side[:, None] >= steps.max(axis=1)[None, :] * out_px  # N, L
    suffices[:, 0] = True
    return len(steps) - 1 - np.argmax(suffices[:, ::-1], axis=1)


def level_rect(rect: Sequence[int], factor: int, size_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """A rectangle of virtual pixels in level pixels, cut at the level's border; empty where right <= left."""
    left, top, right, bottom = (int(edge) * factor for edge in rect)
    return max(left, 0), max(top, 0), min(right, size_px[0]), min(bottom, size_px[1])


def tiles_of(rect: tuple[int, int, int, int], grid: TileGrid) -> Ints:
    """Numbers of the tiles that a rectangle of level pixels touches."""
    left, top, right, bottom = rect
    if right <= left or bottom <= top:
        return np.empty(0, dtype=np.int64)
    columns = np.arange(left // grid.tile_px[0], (right - 1) // grid.tile_px[0] + 1)
    rows = np.arange(top // grid.tile_px[1], (bottom - 1) // grid.tile_px[1] + 1)
    return (rows[:, None] * grid.num_columns + columns[None, :]).ravel()


@dataclass(frozen=True, slots=True)
class MergedRange:
    """One request that brings several tiles."""

    start: int
    stop: int
    """First byte after it."""
    members: tuple[int, ...]
    """Places of the tiles in the arrays that were merged."""


ONLY_EQUAL = -1
"""A gap for `merge_ranges`: only equal or overlapping ranges are joined, not those that touch."""


def merge_ranges(offset: Ints, length: Ints, max_gap: int, max_bytes: int) -> list[MergedRange]:
    """Join byte ranges that lie near each other in the file.

    Args:
        offset: (n,) first bytes; equal ranges may repeat.
        length: (n,) bytes, above 0.
        max_gap: bytes between two ranges that are read and thrown away rather than asked for apart.
        max_bytes: a joined range is no longer, unless a single range is.
    """
    merged: list[MergedRange] = []
    members: list[int] = []
    start = stop = 0
    for n in np.lexsort((length, offset)).tolist():
        first, last = int(offset[n]), int(offset[n] + length[n])
        if members and first - stop <= max_gap and max(stop, last) - start <= max_bytes:
            members.append(n)
            stop = max(stop, last)
            continue
        if members:
            merged.append(MergedRange(start, stop, tuple(members)))
        members, start, stop = [n], first, last
    if members:
        merged.append(MergedRange(start, stop, tuple(members)))
    return merged
