"""Seeds of a training's random numbers, as functions of the run's seed and the step.

So a step can be repeated from a checkpoint that holds no state of a random number generator.
"""

from __future__ import annotations


def derive_step_seed(seed: int, step: int) -> int:
    """Return the seed of an optimizer step.

    Steps of runs with different seeds share a seed only in trainings of more than a million steps.

    Args:
        seed: seed of the run, 0 or more.
        step: number of the step, from 0.
    """
    return seed * 1_000_003 + step


def derive_micro_batch_seed(seed: int, step: int, index: int) -> int:
    """Return the seed of a micro-batch: the same on whichever worker computes it, and in whichever order.

    Args:
        seed: seed of the run, 0 or more.
        step: number of the step, from 0.
        index: number of the micro-batch within the step, from 0; below 1,009.
    """
    return derive_step_seed(seed, step) * 1_009 + index
