"""Planning of windows, tiles and byte ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magnet.windows import MAX_STEP, window_side_px
from service.slides.planning import TileGrid, clip_to_level, find_tiles, merge_ranges, plan_windows


def make_pyramid(size: tuple[int, int], steps: list[float]) -> list[TileGrid]:
    grids = []
    for step in steps:
        wide, high = max(1, int(size[0] / step)), max(1, int(size[1] / step))
        grids.append(TileGrid((wide, high), (256, 256), -(-wide // 256), (size[0] / wide, size[1] / high)))
    return grids


@pytest.mark.parametrize(
    ("side_px", "level", "factor"),
    [
        (100, 0, 1),  # beyond native resolution
        (224, 0, 1),
        (447, 0, 1),
        (448, 0, 2),  # two pixels per output pixel: averaged
        (895, 0, 2),
        (896, 1, 1),  # level 1 has one pixel per output pixel
        (1792, 1, 2),
        (3584, 2, 1),
        (16384, 2, 4),
    ],
)
def test_the_coarsest_sufficient_level_is_read_and_reduced(side_px: int, level: int, factor: int) -> None:
    grids = make_pyramid((16384, 16384), [1, 4, 16])
    region = np.array([[side_px / 16384, 0.0, 0.0]])
    plan = plan_windows((16384, 16384), grids, region, 224, 4)
    assert (plan.level.item(), plan.factor.item()) == (level, factor)
    assert plan.downsample.item() == 4.0**level * factor


@settings(max_examples=300)
@given(
    size=st.tuples(st.integers(1, 200_000), st.integers(1, 200_000)),
    ratios=st.lists(st.floats(1.3, 9), max_size=5),
    s=st.floats(1e-4, 1.4),
    x=st.floats(-1.5, 1.5),
    y=st.floats(-1.5, 1.5),
    out_px=st.integers(1, 300),
    margin_px=st.integers(0, 40),
)
def test_every_window_covers_its_region_with_margin_and_fits(
    size: tuple[int, int], ratios: list[float], s: float, x: float, y: float, out_px: int, margin_px: int
) -> None:
    steps = np.cumprod([1.0, *ratios]).tolist()
    region = np.array([[s, x, y]])
    plan = plan_windows(size, make_pyramid(size, steps), region, out_px, margin_px)
    left, top, wide, high = plan.place[0]
    x0, y0, x1, y1 = plan.rect[0].tolist()
    assert max(x1 - x0, y1 - y0) <= window_side_px(out_px, margin_px)
    slack = 1e-9
    assert left <= x - s - margin_px * wide + slack
    assert top <= y - s - margin_px * high + slack
    assert left + (x1 - x0) * wide >= x + s + margin_px * wide - slack
    assert top + (y1 - y0) * high >= y + s + margin_px * high - slack
    per_output = 2 * s / out_px
    assert per_output < MAX_STEP * min(wide, high) * (1 + slack)


def test_the_pixel_grid_does_not_depend_on_the_region() -> None:
    grids = make_pyramid((5000, 3000), [1.0])
    rng = np.random.default_rng(0)
    region = np.stack([np.full(50, 0.5), rng.uniform(-1, 1, 50), rng.uniform(-1, 1, 50)], axis=1)
    plan = plan_windows((5000, 3000), grids, region, 200, 3)
    origin = (plan.place[:, :2] - [-1, -3000 / 5000]) / plan.place[:, 2:]
    np.testing.assert_allclose(origin, np.rint(origin), atol=1e-6)


def test_tiles_are_those_that_the_rectangle_touches() -> None:
    grid = TileGrid((1000, 600), (256, 256), 4, (1.0, 1.0))
    assert find_tiles((0, 0, 1, 1), grid).tolist() == [0]
    assert find_tiles((255, 255, 257, 257), grid).tolist() == [0, 1, 4, 5]
    assert find_tiles((256, 256, 512, 512), grid).tolist() == [5]
    assert find_tiles((5, 5, 5, 9), grid).tolist() == []
    assert find_tiles(clip_to_level((-50, -50, 2000, 2000), 1, grid.size_px), grid).tolist() == list(range(12))
    assert clip_to_level((-3, 2, 4, 9), 4, (14, 30)) == (0, 8, 14, 30)


def test_near_ranges_are_joined_up_to_the_gap_and_the_size() -> None:
    offset, length = np.array([500, 0, 100, 1000, 0]), np.array([100, 100, 100, 50, 100])
    joined = merge_ranges(offset, length, max_gap=300, max_bytes=10_000)
    assert [(r.start, r.stop, r.members) for r in joined] == [(0, 600, (1, 4, 2, 0)), (1000, 1050, (3,))]
    apart = merge_ranges(offset, length, max_gap=0, max_bytes=10_000)
    assert [(r.start, r.stop) for r in apart] == [(0, 200), (500, 600), (1000, 1050)]
    small = merge_ranges(offset, length, max_gap=300, max_bytes=150)
    assert [(r.start, r.stop) for r in small] == [(0, 100), (100, 200), (500, 600), (1000, 1050)]
    assert merge_ranges(offset[:0], length[:0], 10, 10) == []
