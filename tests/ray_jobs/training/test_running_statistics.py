"""Running statistics after a step: moved by the mean of its micro-batches, as far as one after the other would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from magnet.encoder import make_encoder
from ray_jobs.training.running_statistics import RunningStatistics

MOMENTUM = 0.3


def views(num: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(seed, 1 + seed, (num, 3, 4, 4))).float()


def mean_and_var(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.clone(), norm.running_var.clone()


@pytest.fixture
def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(3, momentum=MOMENTUM)


def test_three_micro_batches_move_the_statistics_once_by_their_mean(norm: nn.BatchNorm2d) -> None:
    batches = [views(5, seed) for seed in range(3)]
    with RunningStatistics(norm).track_step():
        for batch in batches:
            norm(batch)
    pixels = [batch.numpy().transpose(1, 0, 2, 3).reshape(3, -1).astype(np.float64) for batch in batches]
    kept = (1 - MOMENTUM) ** 3
    mean = (1 - kept) * np.mean([p.mean(1) for p in pixels], axis=0)
    var = kept + (1 - kept) * np.mean([p.var(1, ddof=1) for p in pixels], axis=0)
    running_mean, running_var = mean_and_var(norm)
    np.testing.assert_allclose(running_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(running_var.numpy(), var, rtol=1e-5)
    assert norm.momentum == MOMENTUM


def test_one_micro_batch_moves_them_as_a_plain_layer(norm: nn.BatchNorm2d) -> None:
    plain = nn.BatchNorm2d(3, momentum=MOMENTUM)
    statistics = RunningStatistics(norm)
    for seed in range(3):
        plain(views(5, seed))
        with statistics.track_step():
            norm(views(5, seed))
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)


def test_the_order_of_micro_batches_does_not_matter(norm: nn.BatchNorm2d) -> None:
    other = nn.BatchNorm2d(3, momentum=MOMENTUM)
    for layer, order in ((norm, (0, 1, 2)), (other, (2, 0, 1))):
        with RunningStatistics(layer).track_step():
            for seed in order:
                layer(views(5, seed))
    torch.testing.assert_close(norm.running_var, other.running_var)


def test_an_error_leaves_the_statistics_as_before_the_step(norm: nn.BatchNorm2d) -> None:
    statistics = RunningStatistics(norm)
    norm(views(5, 1))
    before = mean_and_var(norm)

    def fail() -> None:
        with statistics.track_step():
            norm(views(5, 2))
            raise RuntimeError("in the step")

    with pytest.raises(RuntimeError, match="in the step"):
        fail()
    assert all(map(torch.equal, before, mean_and_var(norm)))
    assert norm.momentum == MOMENTUM


def test_a_frozen_layer_and_a_layer_without_a_micro_batch_do_not_change(norm: nn.BatchNorm2d) -> None:
    statistics = RunningStatistics(norm)
    norm(views(5, 1))
    before = mean_and_var(norm)
    with statistics.track_step():
        pass
    norm.eval()
    with statistics.track_step():
        norm(views(5, 2))
    assert all(map(torch.equal, before, mean_and_var(norm)))


def test_recomputed_activations_count_once() -> None:
    buffers_of = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = make_encoder("test_resnet", to_be_loaded=True, checkpointing=checkpointing).train()
        with RunningStatistics(model).track_step():
            for seed in (1, 2):
                model(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))).sum().backward()
        buffers_of.append({name: buffer for name, buffer in model.named_buffers() if "running" in name})
    plain, recomputed = buffers_of
    assert plain
    for name, expected in plain.items():
        torch.testing.assert_close(recomputed[name], expected, msg=name)
