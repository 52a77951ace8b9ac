"""Assembly of windows from decoded tiles: cropping, averaging, and reduction by area means."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.slides.planning import Ints, TileGrid, clip_to_level, find_tiles

Pixels = NDArray[np.uint8]


class Canvas:
    """A rectangle of virtual pixels of one level; threads paint its tiles in any order.

    Args:
        grid: geometry of the level.
        factor: number of level pixels per side that are averaged to one virtual pixel.
        rect: left, top, right, bottom in virtual pixels.
        out: uint8 (bottom - top, right - left, 3), the output; pixels outside the level are set to black.
    """

    def __init__(self, grid: TileGrid, factor: int, rect: tuple[int, int, int, int], out: Pixels) -> None:
        self._grid = grid
        self._factor = factor
        self._left, self._top = rect[0], rect[1]
        self._out = out
        self._level_rect = clip_to_level(rect, factor, grid.size_px)
        self._blacken_outside()
        self.tiles: Ints = find_tiles(self._level_rect, grid)
        """Numbers of the tiles to paint."""
        # A virtual pixel inside one tile is averaged at once; one that crosses tiles needs sums until all are painted.
        tile_fits = grid.tile_px[0] % factor == 0 and grid.tile_px[1] % factor == 0
        self._sums: NDArray[np.int64] | None = None if tile_fits else np.zeros(out.shape, dtype=np.int64)
        self._lock = threading.Lock()

    def paint(self, tile: int, pixels: Pixels) -> None:
        """Paint one tile.

        Args:
            tile: number of the tile.
            pixels: uint8 (tile height, tile width, 3).
        """
        row, column = divmod(tile, self._grid.num_columns)
        x, y = column * self._grid.tile_px[0], row * self._grid.tile_px[1]
        left, top, right, bottom = self._level_rect
        left, top = max(left, x), max(top, y)
        right, bottom = min(right, x + self._grid.tile_px[0]), min(bottom, y + self._grid.tile_px[1])
        piece = pixels[top - y : bottom - y, left - x : right - x]
        if self._sums is not None:
            self._add(piece, left, top)
            return
        if self._factor > 1:
            piece = np.asarray(Image.fromarray(np.ascontiguousarray(piece)).reduce(self._factor))
        column, row = left // self._factor - self._left, top // self._factor - self._top
        self._out[row : row + piece.shape[0], column : column + piece.shape[1]] = piece

    def _blacken_outside(self) -> None:
        left, top, right, bottom = self._level_rect
        if right <= left or bottom <= top:
            self._out[...] = 0
            return
        first_column, first_row = left // self._factor - self._left, top // self._factor - self._top
        end_column, end_row = -(-right // self._factor) - self._left, -(-bottom // self._factor) - self._top
        self._out[:first_row], self._out[end_row:] = 0, 0
        self._out[:, :first_column], self._out[:, end_column:] = 0, 0

    def finish(self) -> None:
        """Convert sums to means after all tiles have been painted."""
        if self._sums is None:
            return
        left, top, right, bottom = self._level_rect
        wide = _count_level_pixels(self._left, self._out.shape[1], self._factor, left, right)
        high = _count_level_pixels(self._top, self._out.shape[0], self._factor, top, bottom)
        count = np.maximum(high[:, None] * wide[None, :], 1)[..., None]
        self._out[...] = (self._sums + count // 2) // count  # rounded to the nearest integer

    def _add(self, piece: Pixels, left: int, top: int) -> None:
        """Add a tile whose edges are not on the virtual grid: virtual pixels at its border cover neighbours too."""
        factor = self._factor
        before_x, before_y = left % factor, top % factor
        after_x, after_y = -(before_x + piece.shape[1]) % factor, -(before_y + piece.shape[0]) % factor
        padded = np.pad(piece.astype(np.int64), ((before_y, after_y), (before_x, after_x), (0, 0)))
        high, wide = padded.shape[0] // factor, padded.shape[1] // factor
        sums = padded.reshape(high, factor, wide, factor, 3).sum(axis=(1, 3))
        column, row = left // factor - self._left, top // factor - self._top
        with self._lock:
            assert self._sums is not None
            self._sums[row : row + high, column : column + wide] += sums


def _count_level_pixels(first: int, num: int, factor: int, low: int, high: int) -> Ints:
    """Count the level pixels in [low, high) that each of `num` virtual pixels from `first` on covers; (num,)."""
    edges = np.clip(np.arange(first, first + num + 1) * factor, low, max(low, high))
    return np.diff(edges)


def reduce_area(image: Pixels, extent_wh: tuple[float, float], size_wh: tuple[int, int]) -> Pixels:
    """Reduce an image; each output pixel is the mean of the area that it covers.

    Args:
        image: uint8 (H, W, 3).
        extent_wh: width and height in pixels of the part to use, from the top left corner; may be fractional.
        size_wh: width and height of the output in pixels.

    Returns:
        uint8 (h, w, 3).
    """
    narrow = _average_along(image.astype(np.float32), 1, extent_wh[0], size_wh[0])
    both = _average_along(narrow, 0, extent_wh[1], size_wh[1])
    return np.clip(np.rint(both), 0, 255).astype(np.uint8)


def _average_along(image: NDArray[np.float32], axis: int, extent: float, num: int) -> NDArray[np.float32]:
    """Average over `num` equal, fractional spans of [0, extent) along an axis, by differences of the running sum."""
    lines = np.moveaxis(image, axis, 0)
    # float64: float32 sums of long lines would lose the last bits of a pixel.
    integral = np.concatenate([np.zeros_like(lines[:1], dtype=np.float64), np.cumsum(lines, axis=0, dtype=np.float64)])
    edge = np.minimum(np.linspace(0, extent, num + 1), len(lines))
    whole = np.minimum(edge.astype(np.int64), len(lines) - 1)
    part = (edge - whole).reshape(-1, *[1] * (lines.ndim - 1))
    at_edge = integral[whole] + part * (integral[whole + 1] - integral[whole])
    means = np.diff(at_edge, axis=0) / (extent / num)
    return np.moveaxis(means.astype(np.float32), 0, axis)
