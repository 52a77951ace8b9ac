"""Coordinates of regions: closed forms, round trips, frames compared with an array that numpy rotates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from magnet.regions import (
    NUM_FRAMES,
    ROOT,
    from_level0,
    native_scale,
    root_side_px,
    to_level0,
    to_slide_frame,
    to_um,
)

PLACE = st.floats(-1, 1)
REGIONS = st.builds(lambda s, x, y: np.array([s, x, y]), st.floats(1e-4, 1), PLACE, PLACE)
SIZES = st.tuples(st.integers(1, 300_000), st.integers(1, 300_000))


@pytest.mark.parametrize(
    ("region", "size", "box"),
    [
        ((1, 0, 0), (1000, 600), (0, -200, 1000)),  # the root square extends above and below a wide slide
        ((1, 0, 0), (600, 1000), (-200, 0, 1000)),
        ((0.5, -0.5, -0.5), (1000, 1000), (0, 0, 500)),
        ((0.1, 0.4, 0.0), (1000, 600), (650, 250, 100)),
        ((0.001, -1, 0.6), (1000, 600), (-0.5, 599.5, 1)),  # the corner at the bottom left of the wide slide
    ],
)
def test_level0_boxes_equal_those_computed_by_hand(
    region: tuple[float, ...], size: tuple[int, int], box: tuple[float, ...]
) -> None:
    np.testing.assert_allclose(to_level0(np.array(region), size), box, atol=1e-9)


@given(REGIONS, SIZES)
def test_regions_converted_to_level0_and_back_are_unchanged(region: np.ndarray, size: tuple[int, int]) -> None:
    np.testing.assert_allclose(from_level0(to_level0(region, size), size), region, rtol=1e-9, atol=1e-9)


@given(REGIONS, SIZES)
def test_conversions_keep_leading_dimensions(region: np.ndarray, size: tuple[int, int]) -> None:
    many = np.tile(region, (2, 3, 1))
    np.testing.assert_array_equal(to_level0(many, size)[1, 2], to_level0(region, size))
    assert from_level0(many, size).shape == (2, 3, 3)


@given(SIZES)
def test_the_slide_is_in_the_middle_of_its_root_square(size: tuple[int, int]) -> None:
    x, y, side = to_level0(ROOT, size)
    assert side == root_side_px(size) == max(size)
    assert (x + side / 2, y + side / 2) == (size[0] / 2, size[1] / 2)


def test_micrometres_use_the_pixel_size_of_each_axis() -> None:
    box = np.array([[100.0, 200.0, 40.0], [0.0, -8.0, 1.0]])
    np.testing.assert_allclose(to_um(box, (0.25, 0.5)), [[25, 100, 10, 20], [0, -4, 0.25, 0.5]])


@given(REGIONS, SIZES, st.floats(0.1, 2))
def test_regions_converted_to_micrometres_and_back_are_unchanged(
    region: np.ndarray, size: tuple[int, int], mpp: float
) -> None:
    x, y, wide, high = to_um(to_level0(region, size), (mpp, mpp))
    assert wide == high
    np.testing.assert_allclose(from_level0(np.array([x, y, wide]) / mpp, size), region, rtol=1e-8, atol=1e-8)


def test_at_native_scale_an_output_pixel_is_a_level0_pixel() -> None:
    scale = native_scale(224, 100_000)
    assert to_level0(np.array([scale, 0, 0]), (100_000, 60_000))[2] == pytest.approx(224)
    assert native_scale(224, 200) == 1.0


def cell(region: NDArray[np.float64], side: int) -> tuple[int, int]:
    """Return row and column of the pixel at a region's centre in an image of (side, side) pixels."""
    column, row = np.floor((region[1:] + 1) / 2 * side).astype(int)
    return row, column


@pytest.mark.parametrize("frame", range(NUM_FRAMES))
def test_frames_transform_regions_as_numpy_transforms_an_array(frame: int) -> None:
    side = 7
    slide = np.arange(side * side).reshape(side, side)
    view = np.rot90(slide, frame % 4)
    view = np.fliplr(view) if frame >= 4 else view
    for row in range(side):
        for column in range(side):
            region = np.array([1 / side, (2 * column + 1) / side - 1, (2 * row + 1) / side - 1])
            assert slide[cell(to_slide_frame(region, frame), side)] == view[row, column]


def test_all_eight_frames_are_different() -> None:
    region = np.array([0.1, 0.3, 0.7])
    assert len({tuple(to_slide_frame(region, frame)) for frame in range(NUM_FRAMES)}) == NUM_FRAMES


@pytest.mark.parametrize("frame", [-1, 8])
def test_a_frame_out_of_range_is_rejected(frame: int) -> None:
    with pytest.raises(ValueError, match=f"frame {frame}: must be 0 to 7"):
        to_slide_frame(ROOT, frame)
