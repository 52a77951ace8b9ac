"""The order of a training: every slide once per epoch, with any number of workers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.training.input.order import Order

ORDERS = st.builds(
    lambda num_slides, micro_batch, parts, epochs, seed: Order(
        num_slides=num_slides,
        batch=micro_batch * parts,
        micro_batch=micro_batch,
        epochs=epochs,
        seed=seed,
        augment=True,
    ),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 2**31),
)
ORDER = Order(num_slides=10, batch=6, micro_batch=2, epochs=3, seed=4, augment=True)


def positions_of_step(order: Order, step: int) -> np.ndarray:
    return np.concatenate([order.micro_batch_of(step, i) for i in range(order.micro_batches_per_step)])


@given(ORDERS)
def test_every_slide_occurs_once_per_epoch(order: Order) -> None:
    all_positions = np.concatenate([positions_of_step(order, step) for step in range(order.num_steps)])
    slides = order.slides(all_positions)
    for epoch in range(order.epochs):
        of_epoch = slides[epoch * order.num_slides : (epoch + 1) * order.num_slides]
        assert sorted(of_epoch) == list(range(order.num_slides))


@given(ORDERS)
def test_steps_partition_the_positions(order: Order) -> None:
    all_positions = np.concatenate([positions_of_step(order, step) for step in range(order.num_steps)])
    assert all_positions.tolist() == list(range(order.num_steps * order.batch))


@given(ORDERS)
def test_the_last_step_ends_the_last_epoch(order: Order) -> None:
    needed = order.num_slides * order.epochs
    assert (order.num_steps - 1) * order.batch < needed <= order.num_steps * order.batch
    assert order.epochs_done(order.num_steps) == order.epochs
    assert order.epochs_done(0) == 0


@given(ORDERS, st.integers(1, 6), st.integers(0, 3))
def test_each_micro_batch_belongs_to_one_worker_and_shares_are_in_order(
    order: Order, num_workers: int, first: int
) -> None:
    shares = [order.share(first, rank, num_workers) for rank in range(num_workers)]
    assert all(share == sorted(share) for share in shares)
    everything = [(s, i) for s in range(first, order.num_steps) for i in range(order.micro_batches_per_step)]
    assert sorted(pair for share in shares for pair in share) == everything


@given(ORDERS, st.integers(0, 10))
def test_the_order_from_a_step_on_is_the_rest_of_the_whole_order(order: Order, first: int) -> None:
    whole = order.share(0, 0, 1)
    assert order.share(first, 0, 1) == [pair for pair in whole if pair[0] >= first]


def test_an_epoch_ends_with_the_step_that_contains_its_last_slide() -> None:
    # 10 slides, 6 a step: after 2 steps 12 slides, after 4 steps 24, after 5 steps 30.
    assert [ORDER.epochs_done(n) for n in range(6)] == [0, 0, 1, 1, 2, 3]
    assert ORDER.num_steps == 5


def test_each_epoch_and_each_seed_has_another_shuffle() -> None:
    positions = np.arange(20)
    first, second = np.split(ORDER.slides(positions), 2)
    assert first.tolist() != second.tolist()
    assert ORDER.slides(positions).tolist() == ORDER.slides(positions).tolist()
    assert replace(ORDER, seed=5).slides(positions).tolist() != ORDER.slides(positions).tolist()


@given(st.permutations(range(25)))
def test_slide_and_frame_depend_on_the_position_alone(positions: list[int]) -> None:
    straight = ORDER.slides(np.arange(25)), ORDER.frames(np.arange(25))
    mixed = ORDER.slides(np.array(positions)), ORDER.frames(np.array(positions))
    for a, b in zip(straight, mixed, strict=True):
        np.testing.assert_array_equal(a[positions], b)


def test_all_frames_occur_equally_often() -> None:
    count = np.bincount(ORDER.frames(np.arange(4000)), minlength=8)
    assert len(count) == 8
    assert np.abs(count - 500).max() < 5 * np.sqrt(500 * 7 / 8)  # five standard deviations


def test_without_augmentation_slides_are_not_mirrored_or_rotated() -> None:
    assert not replace(ORDER, augment=False).frames(np.arange(100)).any()


def test_a_slide_has_other_frames_in_other_epochs() -> None:
    order = Order(num_slides=1, batch=1, micro_batch=1, epochs=50, seed=0, augment=True)
    assert len(set(order.frames(np.arange(50)).tolist())) > 4


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_with_any_number_of_workers_a_step_has_the_same_slides(num_workers: int) -> None:
    by_step: dict[int, list[int]] = {}
    for rank in range(num_workers):
        for step, index in ORDER.share(0, rank, num_workers):
            by_step.setdefault(step, []).extend(ORDER.slides(ORDER.micro_batch_of(step, index)).tolist())
    for step, slides in by_step.items():
        assert sorted(slides) == sorted(ORDER.slides(positions_of_step(ORDER, step)).tolist())
