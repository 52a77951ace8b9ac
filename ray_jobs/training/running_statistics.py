"""Running statistics of normalisation layers that do not depend on how many workers share a step.

Left to itself a layer moves them with each forward pass: on each worker with its own micro-batches, the later ones
weighing more. Validation would then see another model with two workers than with one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """Those of a model's batch normalisation, moved once in each optimizer step.

    Of the step's n micro-batches, whoever computed them, the mean of all means and variances is taken in with momentum
    1 - (1 - m)^n: as far as n forward passes move them one after the other.

    Args:
        model: on its device. Each of its layers keeps a hook.
        num_workers: of the process group; 1 needs none.
    """

    def __init__(self, model: nn.Module, num_workers: int = 1) -> None:
        self._num_workers = num_workers
        self._layers = [
            _Layer(part, part.momentum)
            for part in model.modules()
            if isinstance(part, _BatchNorm) and part.track_running_stats and part.momentum is not None
        ]

    @contextmanager
    def of_one_step(self) -> Iterator[None]:
        """Around all forward passes of a step; all workers leave it alike.

        After an error the statistics are as they were before the step.
        """
        before = [layer.begin() for layer in self._layers]
        after = before
        try:
            yield
            after = [
                layer.moved(was, seen) for layer, was, seen in zip(self._layers, before, self._seen(), strict=True)
            ]
        finally:
            for layer, values in zip(self._layers, after, strict=True):
                layer.end(values)

    def _seen(self) -> list[Tensor]:
        """What all workers saw, by layer."""
        mine = [layer.seen for layer in self._layers]
        if self._num_workers == 1 or not mine:
            return mine
        flat = torch.cat(mine)
        distributed.all_reduce(flat)
        return list(flat.split([len(seen) for seen in mine]))


class _Layer:
    """A layer, and what it saw in this step: number of micro-batches, sums of their means and of their variances."""

    def __init__(self, norm: _BatchNorm, momentum: float) -> None:
        self.norm, self.momentum = norm, momentum
        self.seen = torch.cat([torch.zeros_like(self._values()[:1]), torch.zeros_like(self._values())])
        norm.register_forward_hook(self._note)

    def begin(self) -> Tensor:
        """Start a step; means and variances before it."""
        self.seen.zero_()
        self.norm.momentum = 1.0  # so that a forward pass leaves the statistics of its own micro-batch
        return self._values()

    def moved(self, before: Tensor, seen: Tensor) -> Tensor:
        """Means and variances after the step. Of a layer that saw nothing, or is frozen, the same."""
        num, sums = seen[0], seen[1:]
        return before + (1 - (1 - self.momentum) ** num) * (sums / num.clamp(min=1) - before)

    def end(self, values: Tensor) -> None:
        """Give the layer back with these means and variances."""
        self.norm.momentum = self.momentum
        for running, part in zip(self._running(), values.chunk(2), strict=True):
            running.copy_(part)

    def _note(self, norm: nn.Module, *_: object) -> None:
        # momentum 0: activation checkpointing repeats a forward pass that was counted already
        if norm.training and self.norm.momentum:
            self.seen[0] += 1
            self.seen[1:] += self._values()

    def _values(self) -> Tensor:
        return torch.cat(self._running())

    def _running(self) -> tuple[Tensor, Tensor]:
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None, "the layer tracks its statistics"
        assert var is not None, "the layer tracks its statistics"
        return mean, var
