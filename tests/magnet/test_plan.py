"""Cost of a schedule, by hand and by simulation; the split of a batch into micro-batches."""

from __future__ import annotations

import math

import numpy as np
import pytest

from magnet.config import ZoomConfig
from magnet.plan import (
    BatchSplit,
    TileAssumptions,
    estimate_reads,
    find_largest_split,
    list_batch_splits,
    list_schedule_warnings,
    next_smaller_micro_batch,
)


def test_windows_of_the_papers_trees_equal_a_count_by_hand() -> None:
    assert estimate_reads(ZoomConfig(schedule=(3, 2, 3))).windows == 1 + 3 + 6 + 18
    assert estimate_reads(ZoomConfig(schedule=(3, 2, 3, 2))).windows == 1 + 3 + 6 + 18 + 36
    # a 112 px root of 2 * 112 + 2 * 6 + 2 px, and two 224 px patches
    sent = 3 * (238**2 + 2 * 462**2)
    assert estimate_reads(ZoomConfig(schedule=(2,))).window_bytes == sent


def test_expected_tiles_and_requests_match_a_simulation_of_random_windows() -> None:
    zoom, guess = ZoomConfig(schedule=(2, 2)), TileAssumptions(side_px=256, bytes_per_pixel=0.5, opening_requests=3)
    rng = np.random.default_rng(0)
    tiles = requests = 0.0
    for num, out_px in ((1, 112), (2, 112), (4, 224)):
        num_windows = 200_000
        side = out_px * 2 ** rng.uniform(0, 1, num_windows) + 2 * zoom.margin_px
        offset = rng.uniform(0, 256, (2, num_windows))
        across, down = np.floor((offset + side - 1) / 256) + 1
        tiles += num * (across * down).mean()
        requests += num * down.mean()
    reads = estimate_reads(zoom, guess)
    assert reads.tiles == pytest.approx(tiles, rel=0.03)
    assert reads.requests == pytest.approx(requests + 3, rel=0.03)
    assert reads.size_bytes == pytest.approx(tiles * 256 * 256 * 0.5, rel=0.03)


def test_a_batch_is_split_into_equal_micro_batches_that_leave_no_worker_idle() -> None:
    assert list_batch_splits(12, 1) == [
        BatchSplit(12, 1),
        BatchSplit(6, 2),
        BatchSplit(4, 3),
        BatchSplit(3, 4),
        BatchSplit(2, 6),
        BatchSplit(1, 12),
    ]
    assert list_batch_splits(16, 3) == [BatchSplit(4, 2), BatchSplit(2, 3), BatchSplit(1, 6)]


@pytest.mark.parametrize(
    ("batch", "room", "size"), [(16, 16, 8), (16, 5, 4), (16, 1, 1), (16, 0, None), (1, 1, 1), (1, 0, None)]
)
def test_the_largest_split_that_fits_still_lets_two_zooms_overlap(batch: int, room: int, size: int | None) -> None:
    split = find_largest_split(list_batch_splits(batch, 1), lambda cut: cut.micro_batch <= room)
    assert (split and split.micro_batch) == size


def test_after_running_out_of_memory_half_or_the_nearest_divisor_is_next() -> None:
    assert [next_smaller_micro_batch(size) for size in (16, 12, 9, 5, 2, 1)] == [8, 6, 3, 1, 1, None]


def test_schedules_of_the_paper_cause_no_warning_and_a_very_large_one_does() -> None:
    for schedule in ((3, 2, 3), (3, 2, 3, 2), (3, 2, 3, 3)):
        assert list_schedule_warnings(ZoomConfig(schedule=schedule)) == []
    [sentence] = list_schedule_warnings(ZoomConfig(schedule=(4, 4, 4, 4)))
    assert str(4**4) in sentence
    assert str(math.prod([3] * 4)) in sentence
