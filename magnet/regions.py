"""Regions and their coordinates: the root square, the slide's pixels, micrometres.

This is the only module that converts between the three systems:

* root coordinates: the slide padded symmetrically to a square, x to the right and y down, both in [-1, 1];
  the edges of the square are at -1 and 1 (what torch calls ``align_corners=False``);
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
"""Region of the whole root square."""

NUM_FRAMES = 8
"""Number of mirrored and rotated frames of a square; frame 0 is the slide as it was scanned, see `to_slide_frame`."""


def root_side_px(size_px: tuple[int, int]) -> int:
    """Return the side in level-0 pixels of the root square of a slide of level-0 size (w, h)."""
    return max(size_px)


def to_level0(region: Floats, size_px: tuple[int, int]) -> Floats:
    """Convert regions to boxes in level-0 pixels.

    Args:
        region: regions in root coordinates, shape (..., 3).
        size_px: level-0 size (w, h) of the slide.

    Returns:
        Boxes ``(x, y, side)``, (x, y) the top-left corner; shape (..., 3).
    """
    side, pad = _side_and_padding(size_px)
    half = region[..., 0] * side / 2
    centre_xy = (region[..., 1:] + 1) * side / 2 - pad
    return np.stack([centre_xy[..., 0] - half, centre_xy[..., 1] - half, 2 * half], axis=-1)


def from_level0(box: Floats, size_px: tuple[int, int]) -> Floats:
    """Convert boxes in level-0 pixels to regions; the inverse of `to_level0`."""
    side, pad = _side_and_padding(size_px)
    half = box[..., 2] / 2
    centre = (box[..., :2] + half[..., None] + pad) * 2 / side - 1
    return np.concatenate([(half * 2 / side)[..., None], centre], axis=-1)


def to_um(box_px: Floats, mpp_xy: tuple[float, float]) -> Floats:
    """Convert boxes from level-0 pixels to micrometres.

    Args:
        box_px: boxes ``(x, y, side)``, shape (..., 3).
        mpp_xy: pixel size along x and y in um/px.

    Returns:
        Boxes ``(x, y, width, height)``, shape (..., 4): a square is no square where the pixel sizes differ.
    """
    x, y, side = np.moveaxis(box_px, -1, 0)
    return np.stack([x * mpp_xy[0], y * mpp_xy[1], side * mpp_xy[0], side * mpp_xy[1]], axis=-1)


def native_scale(out_px: int, side_px: int) -> float:
    """Return the half-side of a region whose output pixels are level-0 pixels.

    Args:
        out_px: side of the region's view in output pixels.
        side_px: side of the slide's root square in level-0 pixels.

    Returns:
        Above 0 and at most 1, the whole root square, for slides that are smaller than the view.
    """
    return min(out_px / side_px, 1.0)


def to_slide_frame(region: Floats, frame: int) -> Floats:
    """Convert regions of a mirrored or rotated view of the slide to the slide's own frame.

    Args:
        region: regions in root coordinates of the view, shape (..., 3).
        frame: 0 to 7. Frame ``f`` is the slide rotated by ``f % 4`` quarter turns counter-clockwise as seen on the
            screen (as ``numpy.rot90`` rotates an image) and, for ``f >= 4``, mirrored left to right afterwards.
    """
    if not 0 <= frame < NUM_FRAMES:
        raise ValueError(f"frame {frame}: must be 0 to {NUM_FRAMES - 1}")
    s, x, y = np.moveaxis(np.asarray(region, dtype=np.float64), -1, 0)
    if frame >= 4:
        x = -x
    for _ in range(frame % 4):  # rot90 moved (x, y) to (y, -x); this is the way back
        x, y = -y, x
    return np.stack([s, x, y], axis=-1)


def _side_and_padding(size_px: tuple[int, int]) -> tuple[int, Floats]:
    """Return the root square's side and the padding (x, y) between its corner and the slide's, in level-0 pixels."""
    side = root_side_px(size_px)
    return side, (side - np.array(size_px, dtype=np.float64)) / 2
