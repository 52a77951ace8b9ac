"""Where a region lies: the root square, its regions, and the pixels of the slide.

Three systems meet here and nowhere else:

* root coordinates: the slide padded symmetrically to a square, x to the right and y down, both in [-1, 1];
  the edges of the square lie at -1 and 1 (what torch calls ``align_corners=False``);
* level-0 pixels: (x, y) from the top-left corner of the slide at native resolution;
* micrometres: level-0 pixels times the slide's pixel size.

A region is ``(s, tx, ty)``: half-side and centre in the root coordinates of its parent (of the slide, once composed).
Arrays of regions have shape (..., 3), float64. This module needs numpy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROOT: Floats = np.array([1.0, 0.0, 0.0])
"""The whole root square."""

NUM_FRAMES = 8
"""Mirrored and rotated frames of a square: 0 is the slide as it lies; see `to_slide_frame`."""


def compose(parent: Floats, child: Floats) -> Floats:
    """Child regions, given in their parents' coordinates, in the parents' own system.

    Args:
        parent: regions, shape (..., 3), broadcastable against `child`.
        child: regions relative to `parent`, shape (..., 3).

    Returns:
        Shape (..., 3): ``S = S_p * s`` and ``T = S_p * t + T_p``.

    Source: the paper, section 3.1, eq. 4, applied recursively.
    """
    scale = parent[..., :1] * child[..., :1]
    centre = parent[..., :1] * child[..., 1:] + parent[..., 1:]
    return np.concatenate([scale, centre], axis=-1)


def root_side_px(size_px: tuple[int, int]) -> int:
    """Side of the root square of a slide of level-0 size (w, h)."""
    return max(size_px)


def to_level0(region: Floats, size_px: tuple[int, int]) -> Floats:
    """Regions as boxes ``(x, y, side)`` in level-0 pixels, (x, y) the top-left corner; shape (..., 3)."""
    side, pad = _side_and_padding(size_px)
    half = region[..., 0] * side / 2
    centre_xy = (region[..., 1:] + 1) * side / 2 - pad
    return np.stack([centre_xy[..., 0] - half, centre_xy[..., 1] - half, 2 * half], axis=-1)


def from_level0(box: Floats, size_px: tuple[int, int]) -> Floats:
    """Inverse of `to_level0`."""
    side, pad = _side_and_padding(size_px)
    half = box[..., 2] / 2
    centre = (box[..., :2] + half[..., None] + pad) * 2 / side - 1
    return np.concatenate([(half * 2 / side)[..., None], centre], axis=-1)


def to_um(box_px: Floats, mpp_xy: tuple[float, float]) -> Floats:
    """Boxes ``(x, y, side)`` in level-0 pixels as ``(x, y, width, height)`` in micrometres; shape (..., 4)."""
    x, y, side = np.moveaxis(box_px, -1, 0)
    return np.stack([x * mpp_xy[0], y * mpp_xy[1], side * mpp_xy[0], side * mpp_xy[1]], axis=-1)


def native_scale(out_px: int, side_px: int) -> float:
    """Half-side of the region whose `out_px` output pixels are level-0 pixels; 1 where the slide is smaller."""
    return min(out_px / side_px, 1.0)


def to_slide_frame(region: Floats, frame: int) -> Floats:
    """Regions of a mirrored or rotated view of the slide, in the slide's own frame.

    Frame ``f`` is the slide turned by ``f % 4`` quarter turns counter-clockwise as seen on the screen (as
    ``numpy.rot90`` turns an image) and, for ``f >= 4``, mirrored left to right afterwards.
    """
    _check_frame(frame)
    s, x, y = np.moveaxis(np.asarray(region, dtype=np.float64), -1, 0)
    if frame >= 4:
        x = -x
    for _ in range(frame % 4):  # what rot90 moved from (x, y) to (y, -x) goes back
        x, y = -y, x
    return np.stack([s, x, y], axis=-1)


def from_slide_frame(region: Floats, frame: int) -> Floats:
    """Inverse of `to_slide_frame`."""
    _check_frame(frame)
    s, x, y = np.moveaxis(np.asarray(region, dtype=np.float64), -1, 0)
    for _ in range(frame % 4):
        x, y = y, -x
    if frame >= 4:
        x = -x
    return np.stack([s, x, y], axis=-1)


def _check_frame(frame: int) -> None:
    if not 0 <= frame < NUM_FRAMES:
        raise ValueError(f"frame {frame}: must be 0 to {NUM_FRAMES - 1}")


def _side_and_padding(size_px: tuple[int, int]) -> tuple[int, Floats]:
    side = root_side_px(size_px)
    return side, (side - np.array(size_px, dtype=np.float64)) / 2
