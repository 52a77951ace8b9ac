"""Painting of tiles and reduction by area means, compared with plain float64 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from service.slides.painting import Canvas, reduce_area
from service.slides.planning import TileGrid


def paint_tiles(
    level: NDArray[np.uint8], tile_px: int, factor: int, rect: tuple[int, int, int, int], seed: int
) -> NDArray[np.uint8]:
    """Cut a level into tiles and paint them on a canvas in random order."""
    high, wide = level.shape[:2]
    grid = TileGrid((wide, high), (tile_px, tile_px), -(-wide // tile_px), (1.0, 1.0))
    filled = np.pad(level, ((0, -high % tile_px), (0, -wide % tile_px), (0, 0)), constant_values=77)
    out = np.full((rect[3] - rect[1], rect[2] - rect[0], 3), 99, dtype=np.uint8)
    canvas = Canvas(grid, factor, rect, out)
    for tile in np.random.default_rng(seed).permutation(canvas.tiles).tolist():
        row, column = divmod(tile, grid.num_columns)
        y, x = row * tile_px, column * tile_px
        canvas.paint(tile, filled[y : y + tile_px, x : x + tile_px])
    canvas.finish()
    return out


def average_pixels(
    level: NDArray[np.uint8], factor: int, rect: tuple[int, int, int, int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the mean of the existing level pixels of each virtual pixel, and whether exists are any."""
    means = np.zeros((rect[3] - rect[1], rect[2] - rect[0], 3))
    exists = np.zeros(means.shape[:2], dtype=bool)
    for j in range(means.shape[0]):
        for i in range(means.shape[1]):
            y, x = (rect[1] + j) * factor, (rect[0] + i) * factor
            block = level[max(y, 0) : max(y + factor, 0), max(x, 0) : max(x + factor, 0)]
            if block.size:
                means[j, i], exists[j, i] = block.reshape(-1, 3).mean(axis=0), True
    return means, exists


@pytest.mark.parametrize("factor", [1, 2, 4, 32])
@pytest.mark.parametrize("rect", [(0, 0, 4, 3), (-2, -3, 9, 8), (1, 2, 3, 4), (50, 50, 54, 53), (-9, -9, -5, -4)])
def test_virtual_pixels_are_the_means_of_the_level_pixels_under_them(
    factor: int, rect: tuple[int, int, int, int]
) -> None:
    level = np.random.default_rng(factor).integers(0, 256, (101, 83, 3), dtype=np.uint8)
    out = paint_tiles(level, tile_px=48, factor=factor, rect=rect, seed=1)
    means, exists = average_pixels(level, factor, rect)
    assert np.abs(out[exists] - means[exists]).max(initial=0) <= 0.5 + 1e-9
    assert (out[~exists] == 0).all()


def test_reduction_is_the_mean_of_the_covered_area() -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    extent, size = (52.4, 36.5), (20, 17)
    fine = 100  # brute force: each pixel as 100 x 100 points
    columns = np.minimum(((np.arange(size[0] * fine) + 0.5) * extent[0] / (size[0] * fine)).astype(int), 52)
    rows = np.minimum(((np.arange(size[1] * fine) + 0.5) * extent[1] / (size[1] * fine)).astype(int), 36)
    points = image.astype(np.float64)[rows].reshape(size[1], fine, 53, 3).mean(axis=1)
    means = points[:, columns].reshape(size[1], size[0], fine, 3).mean(axis=2)
    assert np.abs(reduce_area(image, extent, size) - means).max() < 2.5  # the error of the points themselves is up to 2
    assert np.abs(reduce_area(image, extent, size) - means).mean() < 0.5


def test_reduction_to_the_same_size_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(reduce_area(image, (7, 9), (7, 9)), image)
