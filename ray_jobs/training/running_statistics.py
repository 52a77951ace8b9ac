"""Running statistics of normalisation layers that do not depend on how many workers share a step.

A layer by itself updates them with each forward pass: on each worker from its own micro-batches, with more weight for
the later ones. Validation would then see another model with two workers than with one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """The running statistics of a model's batch normalisation, updated once in each optimizer step.

    Mean and variance are averaged over the n micro-batches of the step, of all workers, and taken in with momentum
    1 - (1 - m)^n: as far as n forward passes, one after the other, would move them.

    Args:
        model: network, on its device. Each of its layers keeps a hook.
        num_workers: number of workers in the process group; 1 needs no group.
    """

    def __init__(self, model: nn.Module, num_workers: int = 1) -> None:
        self._num_workers = num_workers
        self._layers = [
            _Layer(part, part.momentum)
            for part in model.modules()
            if isinstance(part, _BatchNorm) and part.track_running_stats and part.momentum is not None
        ]

    @contextmanager
    def track_step(self) -> Iterator[None]:
        """Update the statistics by the forward passes of the context, the same on all workers.

        After an error the statistics are as they were before the step.
        """
        before = [layer.begin() for layer in self._layers]
        after = before
        try:
            yield
            sums = self._sum_workers()
            rows = zip(self._layers, before, sums, strict=True)
            after = [layer.update(values, layer_sums) for layer, values, layer_sums in rows]
        finally:
            for layer, values in zip(self._layers, after, strict=True):
                layer.end(values)

    def _sum_workers(self) -> list[Tensor]:
        """Return the sums of each layer over all workers."""
        sums = [layer.sums for layer in self._layers]
        if self._num_workers == 1 or not sums:
            return sums
        flat = torch.cat(sums)  # one collective for all layers
        distributed.all_reduce(flat)
        return list(flat.split([len(layer_sums) for layer_sums in sums]))


class _Layer:
    """A normalisation layer with its sums over a step.

    `sums` is flat: number of micro-batches, sum of their means by channel, sum of their variances by channel.
    """

    def __init__(self, norm: _BatchNorm, momentum: float) -> None:
        self.norm, self.momentum = norm, momentum
        self.sums = torch.cat([torch.zeros_like(self._values()[:1]), torch.zeros_like(self._values())])
        norm.register_forward_hook(self._add)

    def begin(self) -> Tensor:
        """Start a step; return means and variances before it."""
        self.sums.zero_()
        self.norm.momentum = 1.0  # so that a forward pass leaves the statistics of its own micro-batch
        return self._values()

    def update(self, before: Tensor, sums: Tensor) -> Tensor:
        """Return means and variances after the step; unchanged where the layer saw no micro-batch or is frozen."""
        num, total = sums[0], sums[1:]
        return before + (1 - (1 - self.momentum) ** num) * (total / num.clamp(min=1) - before)

    def end(self, values: Tensor) -> None:
        """Set means and variances, and restore the momentum of the layer."""
        self.norm.momentum = self.momentum
        for running, part in zip(self._running(), values.chunk(2), strict=True):
            running.copy_(part)

    def _add(self, norm: nn.Module, *_: object) -> None:
        """Add a forward pass to the sums; a hook."""
        # momentum 0: activation checkpointing repeats a forward pass that was counted before
        if norm.training and self.norm.momentum:
            self.sums[0] += 1
            self.sums[1:] += self._values()

    def _values(self) -> Tensor:
        """Return means and variances by channel, one after the other."""
        return torch.cat(self._running())

    def _running(self) -> tuple[Tensor, Tensor]:
        """Return the layer's own buffers of means and variances."""
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None, "the layer tracks its statistics"
        assert var is not None, "the layer tracks its statistics"
        return mean, var
