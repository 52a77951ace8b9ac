"""Geometry of reading: regions to windows, windows to tiles, tiles to byte ranges. Pure functions without any I/O.

The pixels of a level form a grid that starts at the level's corner. If a level has too many pixels for an output,
`factor` x `factor` of them are averaged to one *virtual* pixel. The virtual grid starts at the level's corner too, so
that the value of a pixel does not depend on the requested region.
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
    """Width and height of the part that shows the slide, without the padding to whole tiles."""
    tile_px: tuple[int, int]
    """Width and height of a tile."""
    num_columns: int
    """Number of tile columns in the file; tiles are numbered row by row."""
    step_xy: tuple[float, float]
    """Level-0 pixels per level pixel, in x and y."""


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Position and level of the windows for N regions of one slide."""

    level: Ints
    """(N,) level to read, 0 for the finest."""
    factor: Ints
    """(N,) number of level pixels per side that are averaged to one virtual pixel."""
    rect: Ints
    """(N, 4) left, top, right, bottom in virtual pixels, right and bottom exclusive; may extend beyond the border."""
    place: Floats
    """(N, 4) left, top, width and height of a virtual pixel, in root coordinates."""
    downsample: Floats
    """(N,) level-0 pixels per virtual pixel (the mean of x and y)."""


def plan_windows(
    size_px: tuple[int, int], levels: Sequence[TileGrid], region: Floats, out_px: int, margin_px: int
) -> WindowPlan:
    """Plan the windows that show regions of one slide.

    The level is the coarsest one with at least one pixel per output pixel, or level 0 beyond native resolution. If it
    has `MAX_STEP` or more pixels per output pixel, they are averaged in powers of two until there are fewer.

    Args:
        size_px: width and height of level 0 in pixels.
        levels: the pyramid, finest level first.
        region: (N, 3) regions in root coordinates.
        out_px: side of the output in pixels, 1 or more.
        margin_px: number of virtual pixels around each region, 0 or more.
    """
    box = to_level0(region, size_px)  # N, 3
    steps = np.array([level.step_xy for level in levels])  # L, 2
    level = _select_level(box[:, 2], steps, out_px)
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


def _select_level(box_side: Floats, steps: Floats, out_px: int) -> Ints:
    """Select for each box the last level whose pixels are no larger than those of the output; (N,)."""
    suffices = box_side[:, None] >= steps.max(axis=1)[None, :] * out_px  # N, L
    suffices[:, 0] = True  # beyond native resolution no level suffices, and level 0 is read
    return len(steps) - 1 - np.argmax(suffices[:, ::-1], axis=1)


def clip_to_level(rect: Sequence[int], factor: int, size_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """Convert a rectangle of virtual pixels to level pixels inside the level; empty if right <= left."""
    left, top, right, bottom = (int(edge) * factor for edge in rect)
    return max(left, 0), max(top, 0), min(right, size_px[0]), min(bottom, size_px[1])


def find_tiles(rect: tuple[int, int, int, int], grid: TileGrid) -> Ints:
    """Return the numbers of the tiles that overlap a rectangle of level pixels, in ascending order; (n,)."""
    left, top, right, bottom = rect
    if right <= left or bottom <= top:
        return np.empty(0, dtype=np.int64)
    columns = np.arange(left // grid.tile_px[0], (right - 1) // grid.tile_px[0] + 1)
    rows = np.arange(top // grid.tile_px[1], (bottom - 1) // grid.tile_px[1] + 1)
    return (rows[:, None] * grid.num_columns + columns[None, :]).ravel()


@dataclass(frozen=True, slots=True)
class MergedRange:
    """A byte range that contains several tiles and is read by one request."""

    start: int
    """First byte."""
    stop: int
    """First byte after the range."""
    members: tuple[int, ...]
    """Indices of the tiles in the merged arrays."""


ONLY_EQUAL = -1
"""Value of `max_gap` for `merge_ranges` that joins only equal or overlapping ranges, not adjacent ones."""


def merge_ranges(offset: Ints, length: Ints, max_gap: int, max_bytes: int) -> list[MergedRange]:
    """Join byte ranges that are close to each other in the file.

    Args:
        offset: (n,) first bytes; ranges may be equal.
        length: (n,) numbers of bytes, above 0.
        max_gap: number of bytes between two ranges up to which they are joined and the bytes between are discarded.
        max_bytes: size limit of a joined range; a single range may be larger.
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
