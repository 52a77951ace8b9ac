"""The zoom on slides that are a formula: what is asked, what is seen, what is learnt from it."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from magnet import zoom as zoom_module
from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, RecipeConfig, ZoomConfig
from magnet.encoder import make_encoder
from magnet.fake_slide import Colour, formula_fetch, to_uint8, waves
from magnet.layer import Placement
from magnet.objective import objective
from magnet.presets import PRESETS
from magnet.regions import NUM_FRAMES, native_scale, to_slide_frame
from magnet.windows import Ask, Fetch, Windows, drive, in_frames
from magnet.zoom import MagNet, Zoomed

SIDE_PX = 2.0**20
"""Of the slides' root squares: native resolution is out of reach unless a test wants it."""

SCHEDULES = [(3,), (3, 2), (2, 1, 3), (1, 2, 2, 2), (2, 1, 2, 1, 2)]


def config(schedule: tuple[int, ...] = (2, 3), **changes: Any) -> ModelConfig:
    """A network small enough for a test; `changes` go to the part that has the field."""
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


class Fixed(nn.Module):
    """A magnifying layer whose children lie where a test says, whatever is seen."""

    def __init__(self, theta_BNP3: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta_BNP3)

    def forward(self, view_BNCHW: Tensor, *_: Any) -> Placement:
        return Placement(self.theta, torch.zeros(*self.theta.shape[:3], 1, 1), torch.zeros(self.theta.shape[:3]))


def some_thetas(num_slides: int, schedule: tuple[int, ...], seed: int = 0, spread: float = 0.15) -> list[Tensor]:
    rng, nodes, thetas = np.random.default_rng(seed), 1, []
    for children in schedule:
        s = 0.45 + spread * rng.uniform(-1, 1, (num_slides, nodes, children, 1))
        thetas.append(torch.tensor(np.concatenate([s, rng.uniform(-0.6, 0.6, (*s.shape[:3], 2))], axis=-1)))
        nodes *= children
    return thetas


def fix(model: MagNet, thetas: list[Tensor]) -> list[nn.Parameter]:
    """Put `Fixed` layers in place of the model's; their parameters."""
    for layer, theta in enumerate(thetas):
        model.layers[layer] = Fixed(theta.clone())
    return [layer.theta for layer in model.layers]


def composed(thetas: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Regions (B, N, 3) of layers 0 to L by the definition, one at a time: S = S_p s, T = S_p t + T_p."""
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
    """One colour per layer, whose waves are some 50 output pixels long in a region of that layer."""
    return [
        waves([(0.4 / 0.45**layer, 0.1 / 0.45**layer), (-0.15 / 0.45**layer, 0.35 / 0.45**layer), (0.2, 0.3)])
        for layer in range(num_layers + 1)
    ]


def by_layer(colours: list[Colour], num_slides: int, heard: list[Ask] | None = None) -> Fetch:
    """Answers each layer in its own colour: one wave cannot tell places apart at all scales."""
    fetches = [formula_fetch([colour] * num_slides, [SIDE_PX] * num_slides) for colour in colours]

    def fetch(ask: Ask) -> Windows:
        if heard is not None:
            heard.append(ask)
        return fetches[ask.layer](ask)

    return fetch


def places(region: NDArray[np.float64], out_px: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(x, y) of the output pixels of a region, each (out_px, out_px)."""
    s, tx, ty = region
    centres = (2 * np.arange(out_px) + 1) / out_px - 1
    x, y = np.meshgrid(tx + s * centres, ty + s * centres)
    return x, y


def run(model: MagNet, fetch: Fetch, num_slides: int, **options: Any) -> Zoomed:
    return drive(model.zoom(np.full(num_slides, SIDE_PX), **options), fetch)


# ---------------------------------------------------------------------------------------------- what is asked and seen


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_views_show_the_colours_of_their_composed_regions_at_every_layer(schedule: tuple[int, ...]) -> None:
    thetas, colours, num_slides = some_thetas(2, schedule), layer_colours(len(schedule)), 2
    model = network(config(schedule)).eval()
    fix(model, thetas)
    trace = run(model, by_layer(colours, num_slides), num_slides, keep_views=True).trace
    for layer, region_BN3 in enumerate(composed([theta.numpy() for theta in thetas])):
        np.testing.assert_allclose(trace.regions[layer], region_BN3, rtol=1e-12, atol=1e-12)
        for b, n in np.ndindex(region_BN3.shape[:2]):
            seen = trace.views[layer][b, n]
            expected = to_uint8(colours[layer](*places(region_BN3[b, n], seen.shape[0])))
            # Half an output pixel aside, colours differ by 6.
            np.testing.assert_allclose(seen.astype(int), expected.astype(int), atol=2)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("training", [False, True])
def test_asks_and_shapes_for_every_depth(schedule: tuple[int, ...], training: bool) -> None:
    settings, num_slides = config(schedule, encoder="test_resnet", head="evidence"), 2
    model = network(settings).train(training)
    heard: list[Ask] = []
    end = run(model, by_layer(layer_colours(len(schedule)), num_slides, heard), num_slides, keep_views=True)
    num_nodes = [math.prod(schedule[:layer]) for layer in range(len(schedule) + 1)]
    assert [ask.layer for ask in heard] == list(range(len(schedule) + 1))
    for layer, (ask, n) in enumerate(zip(heard, num_nodes, strict=True)):
        px = 24 if layer < len(schedule) else 32
        assert ask.slide.tolist() == [0] * n + [1] * n
        assert (ask.out_px, ask.margin_px) == (px, 3)
        np.testing.assert_array_equal(ask.region, end.trace.regions[layer].reshape(-1, 3))
        assert ask.region.dtype == np.float64
        assert end.trace.views[layer].shape == (num_slides, n, px, px, 3)
        assert end.trace.views[layer].dtype == np.uint8
        assert end.trace.levels[layer].shape == (num_slides, n)
    num_patches = num_nodes[-1]
    assert end.logit_B.shape == (num_slides,)
    assert end.patch_BN is not None
    assert end.running_BN.shape == end.patch_BN.shape == (num_slides, num_patches)
    assert torch.equal(end.running_BN[:, -1], end.logit_B)
    assert [value.shape for value in end.value_BN] == [(num_slides, n) for n in num_nodes[1:]]
    assert [value.shape for value in end.trace.values] == [(num_slides, n) for n in num_nodes[1:]]
    assert end.logit_B.dtype == torch.float32


def test_no_views_are_kept_unless_asked_for() -> None:
    trace = run(network(config()).eval(), by_layer(layer_colours(2), 1), 1).trace
    assert trace.views == []
    assert len(trace.regions) == len(trace.levels) == 3


def test_levels_are_those_of_the_windows_read() -> None:
    schedule, thetas = (2, 1), some_thetas(1, (2, 1))
    model = network(config(schedule)).eval()
    fix(model, thetas)
    trace = run(model, by_layer(layer_colours(2), 1), 1).trace
    for layer, region_BN3 in enumerate(composed([theta.numpy() for theta in thetas])):
        out_px = 24 if layer < 2 else 32
        level_px_per_output_px = region_BN3[..., 0] * SIDE_PX / trace.levels[layer] / out_px
        assert (level_px_per_output_px >= 1).all()
        assert (level_px_per_output_px < 2).all()


def test_a_slides_result_does_not_depend_on_its_batch() -> None:
    model = network(config()).eval()
    colours = [waves([(0.3, 0.1), (-0.2, 0.4), (0.5, 0.5)]), waves([(0.1, 0.6), (0.3, 0.3), (-0.5, 0.2)])]
    sides = [SIDE_PX, SIDE_PX / 3]
    both = drive(model.zoom(np.array(sides)), formula_fetch(colours, sides))
    for b in range(2):
        alone = drive(model.zoom(np.array(sides[b : b + 1])), formula_fetch(colours[b : b + 1], sides[b : b + 1]))
        torch.testing.assert_close(alone.logit_B[0], both.logit_B[b], atol=1e-5, rtol=1e-5)
        for layer in range(3):
            np.testing.assert_allclose(alone.trace.regions[layer][0], both.trace.regions[layer][b], atol=1e-6)


def test_sampling_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(config((3, 2))).eval()
    whole = run(model, by_layer(layer_colours(2), 2), 2, keep_views=True)
    monkeypatch.setattr(zoom_module, "SAMPLE_CHUNK", 5)
    parts = run(model, by_layer(layer_colours(2), 2), 2, keep_views=True)
    assert torch.equal(whole.logit_B, parts.logit_B)
    np.testing.assert_array_equal(whole.trace.views[-1], parts.trace.views[-1])


def test_grey_pixels_are_black_to_the_model_only_with_a_tolerance() -> None:
    def stripes(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        grey, purple = np.array([0.6, 0.6, 0.58]), np.array([0.6, 0.3, 0.6])
        return np.where((x < 0)[..., None], grey, purple)

    fetch = formula_fetch([stripes], [SIDE_PX])
    for tolerance, left in ((15, (0, 0, 0)), (None, (153, 153, 148)), (4, (153, 153, 148))):
        root = run(network(config(grey_tolerance=tolerance)).eval(), fetch, 1, keep_views=True).trace.views[0][0, 0]
        assert (root[:, :11] == left).all()
        assert (root[:, 13:] == (153, 76, 153)).all()


# ------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("frame", range(NUM_FRAMES))
def test_frames_give_mirrored_and_turned_views(frame: int) -> None:
    schedule, colours = (2, 2), layer_colours(2)
    model = network(config(schedule)).eval()
    fix(model, some_thetas(1, schedule))
    straight = run(model, by_layer(colours, 1), 1, keep_views=True).trace
    turned = run(model, in_frames(by_layer(colours, 1), np.array([frame])), 1, keep_views=True).trace
    root = np.rot90(straight.views[0][0, 0], frame % 4)
    root = np.fliplr(root) if frame >= 4 else root
    np.testing.assert_allclose(turned.views[0][0, 0].astype(int), root.astype(int), atol=2)
    for layer in range(3):
        np.testing.assert_array_equal(turned.regions[layer], straight.regions[layer])
        for n, region in enumerate(turned.regions[layer][0]):
            seen = turned.views[layer][0, n]
            x, y = places(region, seen.shape[0])
            own = to_slide_frame(np.stack([np.ones_like(x), x, y], axis=-1), frame)
            expected = to_uint8(colours[layer](own[..., 1], own[..., 2]))
            np.testing.assert_allclose(seen.astype(int), expected.astype(int), atol=2)


# ---------------------------------------------------------------------------------------------------------- gradients


class MeanColour(nn.Module):
    """In place of the encoder: how far each patch is from a target colour; (N, 1)."""

    num_features = 1

    def forward(self, view_NCHW: Tensor) -> Tensor:
        return (view_NCHW - torch.tensor([0.3, 0.5, 0.7])[:, None, None]).square().mean(dim=(1, 2, 3))[:, None]


class Weighted(nn.Module):
    """In place of the head: a sum over patches with unlike weights; (B, N)."""

    def forward(self, feature_BND: Tensor) -> Tensor:
        weight_N = torch.arange(1, feature_BND.shape[1] + 1)
        return (feature_BND[..., 0] * weight_N).cumsum(dim=1)


def smooth(model: MagNet) -> MagNet:
    """The model with an encoder and a head that have a closed form."""
    model.encoder, model.head = MeanColour(), Weighted()
    return model


def closed_form(colour: Colour, thetas: list[NDArray[np.float64]], patch_px: int) -> float:
    """What `smooth` computes for one slide, in float64 and without windows."""
    total = 0.0
    for n, region in enumerate(composed(thetas)[-1][0]):
        difference = colour(*places(region, patch_px)) - [0.3, 0.5, 0.7]
        total += (n + 1) * (difference**2).mean()
    return total


def finite_differences(
    colour: Colour, thetas: list[NDArray[np.float64]], patch_px: int, h: float = 1e-6
) -> list[NDArray[np.float64]]:
    """Derivatives of `closed_form` with respect to each theta."""
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
def test_gradient_to_each_theta_is_the_slope_of_the_closed_form(schedule: tuple[int, ...], method: Any) -> None:
    scale = 0.45 ** len(schedule)  # of the patches; their waves are 100 output pixels long
    colour = waves([(0.15 / scale, 0.05 / scale), (-0.08 / scale, 0.12 / scale), (0.1 / scale, -0.1 / scale)])
    thetas = some_thetas(1, schedule, seed=3, spread=0.02)
    model = smooth(network(config(schedule, sampler=method, margin_px=6)).train())
    parameters = fix(model, thetas)
    end = run(model, formula_fetch([colour], [SIDE_PX]), 1, generator=torch.Generator().manual_seed(0))
    exact = [theta.numpy() for theta in thetas]
    assert end.logit_B.item() == pytest.approx(closed_form(colour, exact, 32), rel=5e-3)
    found = torch.autograd.grad(end.logit_B.sum(), parameters)
    for by_theta, expected in zip(found, finite_differences(colour, exact, 32), strict=True):
        # Slopes between pixels of 256 shades: within 2 % of the layer's largest derivative.
        np.testing.assert_allclose(by_theta.numpy(), expected, atol=0.02 * np.abs(expected).max())


class Nudged(nn.Module):
    """A locator whose maps can be pushed along given directions."""

    def __init__(self, locator: nn.Module, direction_NPHW: Tensor) -> None:
        super().__init__()
        self.locator = locator
        self.register_buffer("direction", direction_NPHW)
        self.amount = nn.Parameter(torch.zeros(()))

    def forward(self, view_BNCHW: Tensor) -> Tensor:
        return self.locator(view_BNCHW) + self.amount * self.direction


@pytest.mark.parametrize("schedule", [(2,), (2, 2), (2, 1, 2)])
def test_gradient_to_each_layers_maps_is_the_slope_of_the_whole_zoom(schedule: tuple[int, ...]) -> None:
    """Through moments, composition, re-read views, the maps made from them, and patches: nothing on the way is cut."""
    settings = config(schedule, temperature=2e-3, sampler="bilinear", map_px=12)
    model = smooth(network(settings).eval())
    generator, nudged = torch.Generator().manual_seed(1), []
    for layer, magnify in enumerate(model.layers):
        n, p = settings.zoom.num_nodes[layer], schedule[layer]
        model.layers[layer].locator = Nudged(magnify.locator, torch.randn(n, p, 12, 12, generator=generator))
        nudged.append(model.layers[layer].locator)
    fetch = formula_fetch([waves([(0.7, 0.2), (-0.3, 0.6), (0.5, -0.5)])], [SIDE_PX])
    found = torch.autograd.grad(run(model, fetch, 1).logit_B.sum(), [locator.amount for locator in nudged])
    for locator, by_amount in zip(nudged, found, strict=True):
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


# ------------------------------------------------------------------------------------- native resolution, frozen patch


def test_no_region_is_finer_than_native_resolution() -> None:
    sides, schedule = np.array([64.0, 640.0, 20.0]), (2, 2)
    model = network(config(schedule)).eval()
    thetas = some_thetas(3, schedule)
    fix(model, thetas)
    colour = waves([(0.3, 0.1), (-0.2, 0.4), (0.5, 0.5)])
    trace = drive(model.zoom(sides), formula_fetch([colour] * 3, sides.tolist())).trace
    theta = [t.numpy() for t in thetas]
    expected = theta[0].reshape(3, 2, 3)
    for layer, out_px in ((1, 24), (2, 32)):
        for b, side in enumerate(sides):
            floor = native_scale(out_px, int(side))
            np.testing.assert_allclose(trace.regions[layer][b, :, 0], np.maximum(expected[b, :, 0], floor))
        np.testing.assert_allclose(trace.regions[layer][..., 1:], expected[..., 1:], atol=1e-12)
        if layer == 1:  # children compose with the clamped parents
            parent = trace.regions[1][:, :, None]
            scale = parent[..., :1] * theta[1][..., :1]
            centre = parent[..., :1] * theta[1][..., 1:] + parent[..., 1:]
            expected = np.concatenate([scale, centre], axis=-1).reshape(3, 4, 3)
    assert trace.levels[2].min() >= 1
    assert (trace.regions[2][0, :, 0] == 0.5).all()  # 32 of 64 px
    assert (trace.regions[2][2, :, 0] == 1.0).all()  # the whole of a slide of 20 px


def test_the_frozen_patch_is_its_parent_again_at_better_resolution() -> None:
    schedule = (2, 3, 2)
    model = network(config(schedule, frozen_patch=True)).eval()
    trace = run(model, by_layer(layer_colours(3), 2), 2, keep_views=True).trace
    np.testing.assert_array_equal(trace.regions[2][:, ::3], trace.regions[1])
    others = np.delete(trace.regions[2].reshape(2, 2, 3, 3), 0, axis=2)
    assert (others[..., 0] < trace.regions[1][:, :, None, 0]).all()
    assert not (trace.regions[3].reshape(2, 6, 2, 3)[:, :, 0] == trace.regions[2]).all(axis=-1).any()


def test_there_is_no_frozen_patch_without_its_flag_or_in_one_layer() -> None:
    plain = network(config((2, 3))).eval()
    trace = run(plain, by_layer(layer_colours(2), 1), 1).trace
    assert (trace.regions[2].reshape(2, 3, 3)[:, 0] != trace.regions[1][0]).any(axis=-1).all()
    single = network(config((3,), frozen_patch=True)).eval()
    assert (run(single, by_layer(layer_colours(1), 1), 1).trace.regions[1][..., 0] < 1).all()


# ------------------------------------------------------------------------------------- exploration, heads, presets


def test_exploration_looks_at_tissue_and_is_the_generators() -> None:
    def island(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Purple tissue on white glass, a fifth of the slide wide."""
        tissue = (np.abs(x - 0.5) < 0.2) & (np.abs(y + 0.3) < 0.2)
        return np.where(tissue[..., None], [0.6, 0.3, 0.6], [0.95, 0.95, 0.95])

    settings = config((4,), scale_min=0.1, scale_max=0.1, centre="bounded")
    model, fetch = network(settings).eval(), formula_fetch([island] * 8, [SIDE_PX] * 8)

    def centres(seed: int) -> NDArray[np.float64]:
        end = run(model, fetch, 8, explore=1.0, generator=torch.Generator().manual_seed(seed))
        return end.trace.regions[1][..., 1:]

    first = centres(0)
    assert (np.abs(first - [0.5, -0.3]) < 0.2 + 1 / 12).all()  # half a pixel of the map
    assert first.std(axis=(0, 1)).min() > 0.05
    np.testing.assert_array_equal(first, centres(0))
    assert (first != centres(1)).any()


def test_auxiliary_classifiers_speak_only_in_training() -> None:
    model = network(with_auxiliary((2, 1, 2)))
    fetch = by_layer(layer_colours(3), 2)
    trained = run(model.train(), fetch, 2)
    assert trained.early_B is not None
    assert trained.late_B is not None
    assert trained.early_B.shape == trained.late_B.shape == (2,)
    scored = run(model.eval(), fetch, 2)
    assert scored.early_B is scored.late_B is None


def with_auxiliary(schedule: tuple[int, ...], **options: Any) -> ModelConfig:
    return replace(config(schedule), auxiliary=AuxiliaryConfig(encoder="test_resnet", **options))


@pytest.mark.parametrize(
    ("schedule", "early", "late"), [((2,), None, 1), ((2, 2), 1, 2), ((2, 1, 2), 1, 3), ((2, 1, 1, 2), 1, 3)]
)
def test_auxiliary_classifiers_see_the_views_of_their_layers(
    schedule: tuple[int, ...], early: int | None, late: int
) -> None:
    model = network(with_auxiliary(schedule)).train()
    seen: dict[str, tuple[int, ...]] = {}
    for name in ("early", "late"):
        part = getattr(model, name)
        if part is not None:
            part.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: tuple(inputs[0].shape)}))
    run(model, by_layer(layer_colours(len(schedule)), 2), 2)

    def shape(layer: int) -> tuple[int, ...]:
        px = 24 if layer < len(schedule) else 32
        return (2, math.prod(schedule[:layer]), 3, px, px)

    expected = {"late": shape(late)} | ({"early": shape(early)} if early is not None else {})
    assert seen == expected


def preset(name: str) -> tuple[ModelConfig, RecipeConfig]:
    """A preset with pixels and encoders small enough for a test."""
    model = PRESETS[name].get("model", {})
    zoom = {"map_px": 12, "view_px": 24, "patch_px": 32, "schedule": (2, 2, 2)}
    tiny = {"encoder": "test_resnet"}
    settings = ModelConfig(
        zoom=ZoomConfig(**model.get("zoom", {}) | zoom),
        locator=LocatorConfig(**model.get("locator", {}) | {"channels": 2}),
        classifier=ClassifierConfig(**model.get("classifier", {}) | tiny | {"hidden": 8}),
        auxiliary=AuxiliaryConfig(**tiny | model.get("auxiliary", {})),
    )
    return settings, RecipeConfig(**PRESETS[name].get("recipe", {}))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_part_of_a_preset_learns(name: str) -> None:
    settings, recipe = preset(name)
    model = network(settings).train()
    generator = torch.Generator().manual_seed(0)
    gradient_on = recipe.theta_gradient_on(0.0)
    end = run(model, by_layer(layer_colours(3), 2), 2, explore=0.5, theta_gradient=gradient_on, generator=generator)
    loss_B, parts = objective(end, torch.tensor([1.0, 0.0]), recipe, settings.zoom, threshold=-10.0)
    loss_B.sum().backward()
    assert (
        set(parts)
        == {
            "paper": {"classifier", "early", "late", "paradoxical"},
            "evidence": {"classifier", "value"},
        }[name]
    )
    for layer, magnify in enumerate(model.layers):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in magnify.parameters()), layer
        assert any(p.grad.any() for p in magnify.parameters()), layer
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_half_precision_leaves_regions_and_logits_finite_and_near() -> None:
    model, fetch = network(config((2, 2), temperature=0.01)).eval(), by_layer(layer_colours(2), 1)
    full = run(model, fetch, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(model, fetch, 1)
    np.testing.assert_allclose(half.trace.regions[2], full.trace.regions[2], atol=0.05)
    assert half.logit_B.float().item() == pytest.approx(full.logit_B.item(), abs=0.05)


def test_parameter_groups_hold_every_trained_parameter_once() -> None:
    model = network(replace(with_auxiliary((2, 2)), classifier=ClassifierConfig(encoder="test_resnet", hidden=8)))
    groups = model.parameter_groups()
    ids = [id(p) for group in groups.values() for p in group]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in groups["locators"]} == {id(p) for p in model.layers.parameters()}
    frozen = network(config((2, 2), train_encoder=False))
    kept = {id(p) for p in frozen.encoder.parameters()}
    assert not kept & {id(p) for group in frozen.parameter_groups().values() for p in group}


def test_a_network_to_be_loaded_reads_no_weights_and_warns_of_none(caplog: pytest.LogCaptureFixture) -> None:
    missing = replace(config(), classifier=ClassifierConfig(encoder="test_resnet", weights="/nowhere/x.safetensors"))
    with caplog.at_level(logging.WARNING):
        MagNet(missing, to_be_loaded=True)
        MagNet(with_auxiliary((2, 2)), to_be_loaded=True)
    assert caplog.records == []
    with pytest.raises(FileNotFoundError):
        MagNet(missing)
    with caplog.at_level(logging.WARNING):
        MagNet(with_auxiliary((2, 2)))
    assert len(caplog.records) == 3  # the classifier's encoder and both auxiliary ones


def test_a_network_to_be_loaded_normalises_its_input_as_for_the_weights_it_began_with() -> None:
    """timm's weights of one architecture differ in that; no network is asked for them."""
    means = [
        make_encoder("inception_v3", tag, to_be_loaded=True).mean.flatten().tolist()
        for tag in ("tf_in1k", "gluon_in1k")
    ]
    assert means[0] == pytest.approx([0.5, 0.5, 0.5])
    assert means[1] == pytest.approx([0.485, 0.456, 0.406])
