"""Shared by the tests of the zoom: small networks, slides whose colours are formulas, and layers with given regions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, ZoomConfig
from magnet.fake_slide import Colour, formula_fetch, waves
from magnet.layer import Placement
from magnet.trace import Trace
from magnet.windows import Fetch, WindowRequest, Windows, drive
from magnet.zoom import MagNet, ZoomOptions, ZoomResult

SIDE_PX = 2.0**20
"""Side of the slides' root squares: so large that native resolution limits no region."""

SCHEDULES = [(3,), (3, 2), (2, 1, 3), (1, 2, 2, 2), (2, 1, 2, 1, 2)]


def config(schedule: tuple[int, ...] = (2, 3), **changes: Any) -> ModelConfig:
    """Return settings of a small network; each of `changes` goes to the part that has this field."""
    parts: dict[str, Any] = {
        "zoom": ZoomConfig(
            schedule=schedule, map_px=12, view_px=24, patch_px=32, margin_px=3, grey_tolerance=None, frozen_patch=False
        ),
        "locator": LocatorConfig(channels=2),
        "classifier": ClassifierConfig(encoder="test_resnet", hidden=8),
        "auxiliary": AuxiliaryConfig(encoder=None),
    }
    for name, value in changes.items():
        part = next(key for key, settings in parts.items() if hasattr(settings, name))
        parts[part] = replace(parts[part], **{name: value})
    return ModelConfig(**parts)


def network(settings: ModelConfig, seed: int = 0) -> MagNet:
    torch.manual_seed(seed)
    return MagNet(settings, to_be_loaded=True)


class FixedLayer(nn.Module):
    """A magnifying layer whose children have given regions, independent of the views."""

    def __init__(self, theta_BNP3: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta_BNP3)

    def forward(self, view_BNCHW: Tensor, *_: Any) -> Placement:
        plain = torch.zeros(*self.theta.shape[:3], 1, 1)
        return Placement(self.theta, plain, plain, plain[..., 0, 0])


def some_thetas(num_slides: int, schedule: tuple[int, ...], seed: int = 0, spread: float = 0.15) -> list[Tensor]:
    rng, nodes, thetas = np.random.default_rng(seed), 1, []
    for children in schedule:
        s = 0.45 + spread * rng.uniform(-1, 1, (num_slides, nodes, children, 1))
        thetas.append(torch.tensor(np.concatenate([s, rng.uniform(-0.6, 0.6, (*s.shape[:3], 2))], axis=-1)))
        nodes *= children
    return thetas


def fix(model: MagNet, thetas: list[Tensor]) -> list[nn.Parameter]:
    """Replace the model's layers by `FixedLayer` layers and return their parameters."""
    for layer, theta in enumerate(thetas):
        model.layers[layer] = FixedLayer(theta.clone())
    return [layer.theta for layer in model.layers]


def compose_by_hand(thetas: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Return regions (B, N, 3) of layers 0 to L, one at a time: S = S_p s, T = S_p t + T_p."""
    num_slides = len(thetas[0])
    layers = [np.tile([1.0, 0.0, 0.0], (num_slides, 1, 1))]
    for theta in thetas:
        num_nodes, num_children = theta.shape[1:3]
        regions = np.empty((num_slides, num_nodes * num_children, 3))
        for b, n, p in np.ndindex(num_slides, num_nodes, num_children):
            (S, X, Y), (s, x, y) = layers[-1][b, n], theta[b, n, p]
            regions[b, n * num_children + p] = S * s, S * x + X, S * y + Y
        layers.append(regions)
    return layers


def layer_colours(num_layers: int) -> list[Colour]:
    """Return one colour per layer, whose waves are about 50 output pixels long in a region of that layer."""
    return [
        waves([(0.4 / 0.45**layer, 0.1 / 0.45**layer), (-0.15 / 0.45**layer, 0.35 / 0.45**layer), (0.2, 0.3)])
        for layer in range(num_layers + 1)
    ]


def by_layer(colours: list[Colour], num_slides: int, requests: list[WindowRequest] | None = None) -> Fetch:
    """Return a fetch that answers each layer in another colour: one wave cannot distinguish places at all scales."""
    fetches = [formula_fetch([colour] * num_slides, [SIDE_PX] * num_slides) for colour in colours]

    def fetch(request: WindowRequest) -> Windows:
        if requests is not None:
            requests.append(request)
        return fetches[request.layer](request)

    return fetch


def places(region: NDArray[np.float64], out_px: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x and y of the output pixels of a region, each (out_px, out_px)."""
    s, tx, ty = region
    centres = (2 * np.arange(out_px) + 1) / out_px - 1
    x, y = np.meshgrid(tx + s * centres, ty + s * centres)
    return x, y


def run(model: MagNet, fetch: Fetch, num_slides: int, **options: Any) -> ZoomResult:
    """Zoom into slides of `SIDE_PX`; `options` are fields of `ZoomOptions`."""
    return drive(model.zoom(np.full(num_slides, SIDE_PX), ZoomOptions(**options)), fetch)


def views_of(trace: Trace) -> list[NDArray[np.uint8]]:
    """Return the views (B, N, H, W, C) of all layers of a trace that kept them."""
    views = [layer.view_BNHWC for layer in trace.layers if layer.view_BNHWC is not None]
    assert len(views) == len(trace.layers)
    return views
