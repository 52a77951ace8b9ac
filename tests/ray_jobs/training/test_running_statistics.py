"""Running statistics of a step: its micro-batches' mean, taken in as far as one after the other would have been."""

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


def test_three_micro_batches_move_them_once_by_their_mean(norm: nn.BatchNorm2d) -> None:
    seen = [views(5, seed) for seed in range(3)]
    with RunningStatistics(norm).of_one_step():
        for batch in seen:
            norm(batch)
    pixels = [batch.numpy().transpose(1, 0, 2, 3).reshape(3, -1).astype(np.float64) for batch in seen]
    kept = (1 - MOMENTUM) ** 3
    mean = (1 - kept) * np.mean([p.mean(1) for p in pixels], axis=0)
    var = kept + (1 - kept) * np.mean([p.var(1, ddof=1) for p in pixels], axis=0)
    found = mean_and_var(norm)
    np.testing.assert_allclose(found[0].numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(found[1].numpy(), var, rtol=1e-5)
    assert norm.momentum == MOMENTUM


def test_one_micro_batch_is_as_without(norm: nn.BatchNorm2d) -> None:
    plain = nn.BatchNorm2d(3, momentum=MOMENTUM)
    statistics = RunningStatistics(norm)
    for seed in range(3):
        plain(views(5, seed))
        with statistics.of_one_step():
            norm(views(5, seed))
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)


def test_order_does_not_matter(norm: nn.BatchNorm2d) -> None:
    other = nn.BatchNorm2d(3, momentum=MOMENTUM)
    for layer, order in ((norm, (0, 1, 2)), (other, (2, 0, 1))):
        with RunningStatistics(layer).of_one_step():
            for seed in order:
                layer(views(5, seed))
    torch.testing.assert_close(norm.running_var, other.running_var)


def test_an_error_leaves_them_as_they_were(norm: nn.BatchNorm2d) -> None:
    statistics = RunningStatistics(norm)
    norm(views(5, 1))
    before = mean_and_var(norm)

    def break_off() -> None:
        with statistics.of_one_step():
            norm(views(5, 2))
            raise RuntimeError("in mid-step")

    with pytest.raises(RuntimeError, match="in mid-step"):
        break_off()
    assert all(map(torch.equal, before, mean_and_var(norm)))
    assert norm.momentum == MOMENTUM


def test_a_frozen_layer_and_one_without_a_micro_batch_stay(norm: nn.BatchNorm2d) -> None:
    statistics = RunningStatistics(norm)
    norm(views(5, 1))
    before = mean_and_var(norm)
    with statistics.of_one_step():
        pass
    norm.eval()
    with statistics.of_one_step():
        norm(views(5, 2))
    assert all(map(torch.equal, before, mean_and_var(norm)))


def test_recomputed_activations_count_once() -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = make_encoder("test_resnet", to_be_loaded=True, checkpointing=checkpointing).train()
        with RunningStatistics(model).of_one_step():
            for seed in (1, 2):
                model(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))).sum().backward()
        found.append({name: buffer for name, buffer in model.named_buffers() if "running" in name})
    plain, recomputed = found
    assert plain
    for name, expected in plain.items():
        torch.testing.assert_close(recomputed[name], expected, msg=name)
