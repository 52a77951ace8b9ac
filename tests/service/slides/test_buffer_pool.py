"""Memory is reused, but never while an array refers to it."""

from __future__ import annotations

import gc

import numpy as np

from service.slides.buffer_pool import BufferPool


def get_address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_reused_after_the_last_view_is_deleted() -> None:
    pool = BufferPool(1 << 20)
    first = pool.empty((10, 10, 3))
    place, view = get_address(first), first[2:4].reshape(-1)
    view[:] = 7
    del first
    gc.collect()
    other = pool.empty((10, 10, 3))
    assert get_address(other) != place  # the view still refers to the memory
    other[:] = 9
    assert (view == 7).all()
    del view
    gc.collect()
    assert get_address(pool.empty((10, 9, 3))) == place


def test_unused_memory_stays_within_the_limit() -> None:
    pool = BufferPool(1000)
    large = pool.empty((2000,))
    assert large.shape == (2000,)
    assert pool.empty((0, 4, 4, 3)).shape == (0, 4, 4, 3)
    arrays = [pool.empty((400,)) for _ in range(5)]
    places = {get_address(array) for array in arrays}
    del arrays
    gc.collect()
    again = [pool.empty((400,)) for _ in range(3)]
    assert len({get_address(array) for array in again} & places) >= 1
    assert sum(map(len, pool._free)) <= 1000
