"""Gradients of the zoom against closed forms and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from magnet.fake_slide import Colour, formula_fetch, waves
from magnet.heads import SlideLogits
from magnet.zoom import MagNet
from tests.magnet.zoom_harness import (
    SIDE_PX,
    by_layer,
    compose_by_hand,
    config,
    fix,
    layer_colours,
    network,
    places,
    run,
    some_thetas,
)


class MeanColour(nn.Module):
    """An encoder whose feature is the squared distance of each patch from a target colour; (N, 1)."""

    num_features = 1

    def forward(self, view_NCHW: Tensor) -> Tensor:
        return (view_NCHW - torch.tensor([0.3, 0.5, 0.7])[:, None, None]).square().mean(dim=(1, 2, 3))[:, None]


class WeightedSum(nn.Module):
    """A head that sums the patches with different weights; (B, N)."""

    def forward(self, feature_BND: Tensor) -> SlideLogits:
        weight_N = torch.arange(1, feature_BND.shape[1] + 1)
        return SlideLogits((feature_BND[..., 0] * weight_N).cumsum(dim=1), None)


def smooth(model: MagNet) -> MagNet:
    """Give the model an encoder and a head that have a closed form."""
    model.encoder, model.head = MeanColour(), WeightedSum()
    return model


def closed_form(colour: Colour, thetas: list[NDArray[np.float64]], patch_px: int) -> float:
    """Return the logit of a `smooth` model for one slide, computed in float64 and without windows."""
    total = 0.0
    for n, region in enumerate(compose_by_hand(thetas)[-1][0]):
        difference = colour(*places(region, patch_px)) - [0.3, 0.5, 0.7]
        total += (n + 1) * (difference**2).mean()
    return total


def finite_differences(
    colour: Colour, thetas: list[NDArray[np.float64]], patch_px: int, h: float = 1e-6
) -> list[NDArray[np.float64]]:
    """Return the derivatives of `closed_form` with respect to each theta."""
    result = [np.zeros_like(theta) for theta in thetas]
    for layer, theta in enumerate(thetas):
        for index in np.ndindex(theta.shape):
            ends = []
            for step in (h, -h):
                moved = [t.copy() for t in thetas]
                moved[layer][index] += step
                ends.append(closed_form(colour, moved, patch_px))
            result[layer][index] = (ends[0] - ends[1]) / (2 * h)
    return result


@pytest.mark.parametrize("method", ["bilinear", "lms"])
@pytest.mark.parametrize("schedule", [(2,), (2, 2), (2, 1, 2)])
def test_the_gradient_to_each_theta_is_the_slope_of_the_closed_form(schedule: tuple[int, ...], method: Any) -> None:
    scale = 0.45 ** len(schedule)  # of the patches; their waves are 100 output pixels long
    colour = waves([(0.15 / scale, 0.05 / scale), (-0.08 / scale, 0.12 / scale), (0.1 / scale, -0.1 / scale)])
    thetas = some_thetas(1, schedule, seed=3, spread=0.02)
    model = smooth(network(config(schedule, sampler=method, margin_px=6)).train())
    parameters = fix(model, thetas)
    end = run(model, formula_fetch([colour], [SIDE_PX]), 1, generator=torch.Generator().manual_seed(0))
    exact = [theta.numpy() for theta in thetas]
    assert end.logit_B.item() == pytest.approx(closed_form(colour, exact, 32), rel=5e-3)
    gradients = torch.autograd.grad(end.logit_B.sum(), parameters)
    for by_theta, expected in zip(gradients, finite_differences(colour, exact, 32), strict=True):
        # Slopes between pixels of 256 shades: within 2 % of the layer's largest derivative.
        np.testing.assert_allclose(by_theta.numpy(), expected, atol=0.02 * np.abs(expected).max())


class ShiftedLocator(nn.Module):
    """A locator whose maps can be shifted along given directions."""

    def __init__(self, locator: nn.Module, direction_NPHW: Tensor) -> None:
        super().__init__()
        self.locator = locator
        self.register_buffer("direction", direction_NPHW)
        self.amount = nn.Parameter(torch.zeros(()))

    def forward(self, view_BNCHW: Tensor) -> Tensor:
        return self.locator(view_BNCHW) + self.amount * self.direction


@pytest.mark.parametrize("schedule", [(2,), (2, 2), (2, 1, 2)])
def test_the_gradient_to_the_maps_of_each_layer_is_the_slope_of_the_whole_zoom(schedule: tuple[int, ...]) -> None:
    """The gradient passes through moments, composition, views, the maps of the next layers, and patches."""
    settings = config(schedule, temperature=2e-3, sampler="bilinear", map_px=12)
    model = smooth(network(settings).eval())
    generator, shifted = torch.Generator().manual_seed(1), []
    for layer, magnify in enumerate(model.layers):
        n, p = settings.zoom.num_nodes[layer], schedule[layer]
        model.layers[layer].locator = ShiftedLocator(magnify.locator, torch.randn(n, p, 12, 12, generator=generator))
        shifted.append(model.layers[layer].locator)
    fetch = formula_fetch([waves([(0.7, 0.2), (-0.3, 0.6), (0.5, -0.5)])], [SIDE_PX])
    gradients = torch.autograd.grad(run(model, fetch, 1).logit_B.sum(), [locator.amount for locator in shifted])
    for locator, by_amount in zip(shifted, gradients, strict=True):
        ends = []
        for amount in (0.05, -0.05):
            with torch.no_grad():
                locator.amount.fill_(amount)
                ends.append(run(model, fetch, 1).logit_B.double().item())
        with torch.no_grad():
            locator.amount.zero_()
        expected = (ends[0] - ends[1]) / 0.1
        assert abs(expected) > 1e-4
        assert by_amount.item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("on", [True, False])
def test_the_gradient_to_the_regions_can_be_cut_off(on: bool) -> None:
    model = network(config((2, 2))).train()
    end = run(model, by_layer(layer_colours(2), 2), 2, theta_gradient=on)
    end.logit_B.sum().backward()
    groups = model.parameter_groups()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in groups["rest"])
    if on:
        assert all(any(p.grad.abs().max() > 0 for p in layer.parameters()) for layer in model.layers)
    else:
        assert all(p.grad is None for p in groups["locators"])


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_always_samples_bilinearly(training: bool) -> None:
    """A gradient in evaluation is that of the bilinear sampler, and no noise is drawn."""
    thetas, slopes, states = some_thetas(1, (2, 2)), [], []
    for sampler in ("bilinear", "lms"):
        model = smooth(network(config((2, 2), sampler=sampler, margin_px=6)).train(training))
        parameters, generator = fix(model, thetas), torch.Generator().manual_seed(0)
        end = run(model, by_layer(layer_colours(2), 1), 1, generator=generator)
        slopes.append(torch.cat([g.flatten() for g in torch.autograd.grad(end.logit_B.sum(), parameters)]))
        states.append(generator.get_state())
    assert torch.equal(slopes[0], slopes[1]) is not training
    assert torch.equal(states[0], states[1]) is not training
