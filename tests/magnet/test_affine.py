"""Moments, limits and composition compared with closed forms in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from magnet.affine import (
    clamp_scale,
    compose,
    expected_score,
    limit_centre,
    limit_scale,
    moments,
    pixel_centres,
)

F64 = torch.float64


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def some_regions(*shape: int, seed: int = 0) -> torch.Tensor:
    values = noise(*shape, 3, seed=seed).tanh()
    return torch.cat([values[..., :1].abs() + 0.01, values[..., 1:]], dim=-1)


def as_matrix(region: torch.Tensor) -> torch.Tensor:
    s, x, y = region.unbind(-1)
    zero, one = torch.zeros_like(s), torch.ones_like(s)
    return torch.stack([s, zero, x, zero, s, y, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


def test_composition_equals_the_product_of_matrices() -> None:
    parent, child = some_regions(2, 3), some_regions(2, 3, 4, seed=1)
    product = as_matrix(parent)[:, :, None] @ as_matrix(child)
    torch.testing.assert_close(as_matrix(compose(parent, child)), product, rtol=0, atol=1e-15)


def test_composition_is_differentiable() -> None:
    assert torch.autograd.gradcheck(
        compose, (some_regions(1, 2).requires_grad_(), some_regions(1, 2, 3, seed=1).requires_grad_())
    )


def test_pixel_centres_tile_the_square() -> None:
    torch.testing.assert_close(pixel_centres(4, like=noise(1)), torch.tensor([-0.75, -0.25, 0.25, 0.75], dtype=F64))


def test_a_map_of_one_position_has_that_mean_and_no_spread() -> None:
    p = torch.zeros(1, 4, 8, dtype=F64)
    p[0, 1, 6] = 1
    for spread in ("rms", "l2"):
        mean, size = moments(p, spread)
        torch.testing.assert_close(mean, torch.tensor([[13 / 8 - 1, 3 / 4 - 1]], dtype=F64))  # x, then y
        assert size.item() == 0


def test_a_uniform_map_has_mean_zero_and_the_spread_of_the_closed_form() -> None:
    p = torch.full((3136,), 1 / 3136, dtype=F64).view(56, 56)
    mean, rms = moments(p, "rms")
    torch.testing.assert_close(mean, torch.zeros(2, dtype=F64), rtol=0, atol=1e-15)
    deviation = np.sqrt((56**2 - 1) / 3) / 56  # of a discrete uniform distribution
    assert rms.item() == pytest.approx(deviation, abs=1e-14)
    expected_l2 = (np.sqrt(2) + np.arcsinh(1)) / 3  # mean distance from the centre of a square of half-side 1
    assert moments(p, "l2")[1].item() == pytest.approx(expected_l2, abs=1e-3)  # up to the pixels' size


def test_the_spread_of_two_positions_is_half_their_distance() -> None:
    p = torch.zeros(4, 4, dtype=F64)
    p[0, 0], p[3, 3] = 0.5, 0.5
    assert moments(p, "rms")[1].item() == pytest.approx(0.75)  # per axis
    assert moments(p, "l2")[1].item() == pytest.approx(0.75 * np.sqrt(2))


def test_moments_equal_those_computed_by_numpy() -> None:
    p = noise(3, 2, 9, 7).softmax(-1)
    p = p / p.sum((-2, -1), keepdim=True)
    x, y = np.meshgrid((2 * np.arange(7) + 1) / 7 - 1, (2 * np.arange(9) + 1) / 9 - 1)
    mean, rms = moments(p, "rms")
    _, l2 = moments(p, "l2")
    for i in np.ndindex(3, 2):
        weight = p[i].numpy()
        centre = np.array([np.average(x, weights=weight), np.average(y, weights=weight)])
        square = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
        np.testing.assert_allclose(mean[i], centre, atol=1e-14)
        np.testing.assert_allclose(rms[i], np.sqrt(np.average(square, weights=weight) / 2), atol=1e-14)
        np.testing.assert_allclose(l2[i], np.average(np.sqrt(square), weights=weight), atol=1e-14)


@pytest.mark.parametrize("spread", ["rms", "l2"])
def test_moments_are_differentiable_and_their_gradient_is_finite_at_zero_spread(spread: Any) -> None:
    p = noise(2, 4, 4).softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: moments(x, spread), p)
    peak = torch.zeros(4, 4, dtype=F64)
    peak[2, 1] = 1
    peak.requires_grad_()
    moments(peak, spread)[1].backward()
    assert peak.grad is not None
    assert peak.grad.isfinite().all()


def test_the_expected_score_is_the_weighted_mean() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64)
    p = torch.tensor([[0.0, 0.25], [0.75, 0.0]], dtype=F64)
    assert expected_score(scores, p).item() == 2.75


def value_and_slope(function: Any, x: float) -> tuple[float, float]:
    at = torch.tensor(x, dtype=F64, requires_grad=True)
    value = function(at)
    return value.item(), torch.autograd.grad(value, at)[0].item()


@pytest.mark.parametrize(
    ("spread", "value", "hard", "through"),
    [(0.01, 0.05, 0.0, 1.0), (0.4, 0.4, 1.0, 1.0), (0.9, 0.8, 0.0, 1.0)],
)
def test_hard_limits_block_the_gradient_and_straight_through_ones_do_not(
    spread: float, value: float, hard: float, through: float
) -> None:
    assert value_and_slope(lambda s: limit_scale(s, "hard", 0.05, 0.8), spread) == pytest.approx((value, hard))
    assert value_and_slope(lambda s: limit_scale(s, "straight_through", 0.05, 0.8), spread) == pytest.approx(
        (value, through)
    )


@pytest.mark.parametrize("spread", [0.0, 0.03, 0.05, 0.3])
def test_the_softplus_limit_equals_its_formula(spread: float) -> None:
    value, slope = value_and_slope(lambda s: limit_scale(s, "softplus", 0.05), spread)
    above = np.exp((spread - 0.05) / 0.05)
    assert value == pytest.approx(0.05 + 0.05 * np.log1p(above), abs=1e-9)
    assert slope == pytest.approx(above / (1 + above), abs=1e-9)


def test_the_centre_of_the_paper_is_tanh() -> None:
    mean = noise(5, 2)
    np.testing.assert_allclose(limit_centre(mean, torch.ones(5)).numpy(), np.tanh(mean.numpy()), atol=1e-15)


def test_a_bounded_centre_keeps_the_region_inside_its_parent() -> None:
    mean = torch.tensor([[0.9, -0.9], [0.2, -0.1]], dtype=F64, requires_grad=True)
    scale = torch.tensor([0.3, 0.3], dtype=F64, requires_grad=True)
    centre = limit_centre(mean, scale, "bounded")
    torch.testing.assert_close(centre, torch.tensor([[0.7, -0.7], [0.2, -0.1]], dtype=F64))
    centre.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(2, 2, dtype=F64))
    assert scale.grad is None


def test_native_resolution_is_the_smallest_scale_of_each_slide() -> None:
    region = torch.tensor([[[0.001, 0.5, -0.5], [0.2, 0.0, 0.0]]] * 2, dtype=F64, requires_grad=True)
    clamped = clamp_scale(region, torch.tensor([0.01, 0.5]))
    torch.testing.assert_close(clamped[..., 0], torch.tensor([[0.01, 0.2], [0.5, 0.5]], dtype=F64))
    torch.testing.assert_close(clamped[..., 1:], region[..., 1:])
    clamped.sum().backward()
    torch.testing.assert_close(region.grad, torch.ones(2, 2, 3, dtype=F64))


@pytest.mark.parametrize(
    "call",
    [
        lambda: moments(torch.ones(2, 2), "mean"),  # type: ignore[arg-type]
        lambda: limit_scale(torch.ones(1), "soft"),  # type: ignore[arg-type]
        lambda: limit_scale(torch.ones(1), s_min=0.5, s_max=0.4),
        lambda: limit_centre(torch.ones(1, 2), torch.ones(1), "none"),  # type: ignore[arg-type]
    ],
)
def test_unknown_options_are_rejected_with_the_allowed_values(call: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        call()
