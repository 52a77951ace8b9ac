"""The controls look at the right regions, and are run and trained in the same way as a MagNet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from magnet.config import RecipeConfig
from magnet.controls import RandomTissue, Thumbnail
from magnet.fake_slide import formula_fetch
from magnet.objective import objective
from magnet.regions import native_scale
from magnet.windows import WindowRequest, drive
from magnet.zoom import ZoomOptions
from tests.magnet.zoom_harness import SIDE_PX, by_layer, config, layer_colours

HALF_SIDES = [0.05, 0.1, 0.02, 0.05, 0.1, 0.02]
ISLAND_X, ISLAND_Y, ISLAND = 0.5, -0.3, 0.2


def island(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return purple tissue on white glass."""
    tissue = (np.abs(x - ISLAND_X) < ISLAND) & (np.abs(y - ISLAND_Y) < ISLAND)
    return np.where(tissue[..., None], [0.6, 0.3, 0.6], [0.95, 0.95, 0.95])


def random_boxes(num_slides: int, seed: int, side_px: float = SIDE_PX) -> NDArray[np.float64]:
    torch.manual_seed(0)
    settings = config((3, 2))
    settings = replace(settings, zoom=replace(settings.zoom, map_px=48, view_px=48))
    model = RandomTissue(settings, HALF_SIDES).eval()
    fetch = formula_fetch([island] * num_slides, [side_px] * num_slides)
    zoom = model.zoom(np.full(num_slides, side_px), ZoomOptions(generator=torch.Generator().manual_seed(seed)))
    return drive(zoom, fetch).trace.regions[-1]


def test_random_boxes_have_the_given_sizes_and_are_uniform_on_tissue() -> None:
    boxes = random_boxes(40, seed=0)
    np.testing.assert_allclose(boxes[..., 0], np.broadcast_to(HALF_SIDES, (40, 6)))
    from_island = (boxes[..., 1:] - [ISLAND_X, ISLAND_Y]).reshape(-1, 2)
    assert np.abs(from_island).max() < ISLAND + 2 / 48  # a pixel at the edge is partly outside
    # uniform over 0.4: a spread of 0.4 / sqrt(12) = 0.115, which 240 draws give within 5 %
    assert from_island.std(axis=0) == pytest.approx([0.115, 0.115], rel=0.15)
    assert np.abs(from_island.mean(axis=0)).max() < 0.03


def test_random_boxes_depend_only_on_the_generator() -> None:
    np.testing.assert_array_equal(random_boxes(2, seed=1), random_boxes(2, seed=1))
    assert (random_boxes(2, seed=1) != random_boxes(2, seed=2)).any()


def test_random_boxes_are_no_finer_than_native_resolution() -> None:
    side_px = 1024.0
    assert (random_boxes(2, seed=0, side_px=side_px)[..., 0] >= native_scale(32, int(side_px)) - 1e-12).all()


def test_a_control_needs_a_half_side_for_each_patch() -> None:
    with pytest.raises(ValueError, match="5 half-sides for 6 patches"):
        RandomTissue(config((3, 2)), HALF_SIDES[:5])


def test_the_thumbnail_requests_only_the_root() -> None:
    requests: list[WindowRequest] = []
    torch.manual_seed(0)
    model = Thumbnail(config((3, 2))).eval()
    end = drive(model.zoom(np.full(2, SIDE_PX)), by_layer(layer_colours(2), 2, requests))
    assert [(request.layer, request.out_px, len(request.region)) for request in requests] == [(0, 24, 2)]
    assert end.running_BN.shape == (2, 1)


@pytest.mark.parametrize("control", [lambda c: RandomTissue(c, HALF_SIDES), Thumbnail])
def test_the_classifier_of_a_control_is_trained_and_its_locators_are_not(control: object) -> None:
    torch.manual_seed(0)
    settings = config((3, 2), head="evidence")
    model = control(settings).train()  # type: ignore[operator]  # a class or a function that makes a control
    zoom = model.zoom(np.full(2, SIDE_PX), ZoomOptions(generator=torch.Generator().manual_seed(0)))
    end = drive(zoom, by_layer(layer_colours(2), 2))
    loss_B, parts = objective(end, torch.tensor([1.0, 0.0]), RecipeConfig(), settings.zoom, threshold=0.0)
    loss_B.sum().backward()
    assert set(parts) == {"classifier"}
    assert all(p.grad is not None and p.grad.any() for p in model.head.parameters())
    assert all(p.grad is None for p in model.layers.parameters())
