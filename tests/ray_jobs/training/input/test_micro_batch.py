"""Micro-batches without some of their slides, and in parts."""

from __future__ import annotations

import numpy as np

from magnet.windows import Windows
from ray_jobs.training.input.micro_batch import MicroBatch


def test_without_removes_slides_and_their_root_views() -> None:
    roots = Windows(
        pixels=np.arange(3 * 12, dtype=np.uint8).reshape(3, 2, 2, 3),
        place=np.arange(12.0).reshape(3, 4),
        level=np.ones(3),
    )
    whole = MicroBatch(4, 1, np.array([7, 9, 8]), np.array([0, 3, 5]), roots, {9: "torn"})
    rest = whole.without({9, 2})
    assert rest.slides.tolist() == [7, 8]
    assert rest.frames.tolist() == [0, 5]
    np.testing.assert_array_equal(rest.roots.pixels, roots.pixels[[0, 2]])
    np.testing.assert_array_equal(rest.roots.place, roots.place[[0, 2]])
    assert (rest.step, rest.index, dict(rest.lost)) == (4, 1, {})
    assert whole.without({1}) is whole


def test_parts_are_numbered_as_if_the_step_had_been_cut_that_way() -> None:
    roots = Windows(
        pixels=np.zeros((4, 2, 2, 3), dtype=np.uint8), place=np.arange(16.0).reshape(4, 4), level=np.ones(4)
    )
    whole = MicroBatch(5, 2, np.array([3, 1, 4, 9]), np.array([0, 1, 2, 3]), roots, {4: "torn"})
    first, second = whole.split(2)
    assert (first.index, second.index) == (4, 5)
    assert (first.slides.tolist(), second.slides.tolist()) == ([3, 1], [4, 9])
    assert (dict(first.lost), dict(second.lost)) == ({}, {4: "torn"})
    np.testing.assert_array_equal(second.roots.place, roots.place[2:])
    assert whole.split(4) == [whole]
