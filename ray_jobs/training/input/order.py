"""The order of a training: which slides a step contains, as a pure function of the seed and the step.

Positions 0, 1, 2, ... run through one shuffle of the training slides after another. Step k covers the positions
``k * batch`` to ``(k + 1) * batch - 1``, cut into micro-batches; worker r of n computes every n-th of them. The number
of workers decides which worker computes a micro-batch, and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magnet.regions import NUM_FRAMES


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The order of a training."""

    num_slides: int
    """Number of training slides."""
    batch: int
    """Slides per step."""
    micro_batch: int
    """Slides per micro-batch; a divisor of `batch`."""
    epochs: int
    """Passes over the slides."""
    seed: int
    """Seed of the shuffles and frames."""
    augment: bool
    """Whether slides are mirrored and rotated."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole training; the last one takes slides of a further shuffle where its batch is not full."""
        return math.ceil(self.num_slides * self.epochs / self.batch)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of a step."""
        return self.batch // self.micro_batch

    def epochs_done(self, num_steps: int) -> int:
        """Return the number of epochs that are complete after so many steps."""
        return min(self.epochs, num_steps * self.batch // self.num_slides)

    def slides(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slide (0 to num_slides - 1) at each position; same shape."""
        result = np.empty_like(positions)
        for epoch in np.unique(positions // self.num_slides):  # a step may contain slides of several epochs
            shuffle = np.random.default_rng([self.seed, int(epoch)]).permutation(self.num_slides)
            in_epoch = positions // self.num_slides == epoch
            result[in_epoch] = shuffle[positions[in_epoch] % self.num_slides]
        return result

    def frames(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the mirrored or rotated frame (0 to 7) at each position; same shape."""
        if not self.augment:
            return np.zeros_like(positions)
        # Without the 7, position p would share its random numbers with the shuffle of epoch p.
        return np.array([np.random.default_rng([self.seed, 7, int(p)]).integers(NUM_FRAMES) for p in positions])

    def micro_batch_of(self, step: int, index: int) -> NDArray[np.int64]:
        """Return the positions (micro_batch,) of micro-batch `index` of a step."""
        first = step * self.batch + index * self.micro_batch
        return np.arange(first, first + self.micro_batch)

    def share(self, first_step: int, rank: int, num_workers: int) -> list[tuple[int, int]]:
        """Return the (step, index) of every micro-batch that a worker computes from a step on, in their order."""
        indices = range(rank, self.micro_batches_per_step, num_workers)
        return [(step, index) for step in range(first_step, self.num_steps) for index in indices]
