"""Seeds of steps and micro-batches: their values are part of what makes a training repeatable."""

from __future__ import annotations

from ray_jobs.training.input.seeds import derive_micro_batch_seed, derive_step_seed


def test_seeds_have_the_values_of_earlier_trainings() -> None:
    """Other values would change the losses of a training that is continued or repeated."""
    assert derive_step_seed(0, 7) == 7
    assert derive_step_seed(1, 2) == 1_000_005
    assert derive_micro_batch_seed(1, 2, 3) == 1_009_005_048


def test_steps_and_micro_batches_of_several_seeds_have_distinct_seeds() -> None:
    steps = [derive_step_seed(seed, step) for seed in range(3) for step in range(50)]
    parts = [derive_micro_batch_seed(seed, step, i) for seed in range(3) for step in range(50) for i in range(8)]
    assert len(set(steps)) == len(steps)
    assert len(set(parts)) == len(parts)
