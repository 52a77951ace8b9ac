"""The zoom's limits and options: native resolution, frozen patch, exploration, heads, presets."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, RecipeConfig, ZoomConfig
from magnet.encoder import make_encoder
from magnet.fake_slide import formula_fetch, waves
from magnet.objective import objective
from magnet.presets import PRESETS
from magnet.regions import native_scale
from magnet.windows import drive
from magnet.zoom import MagNet
from tests.magnet.zoom_harness import (
    SIDE_PX,
    by_layer,
    config,
    fix,
    layer_colours,
    network,
    run,
    some_thetas,
)


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
        if layer == 1:  # children are composed with the clamped parents
            parent = trace.regions[1][:, :, None]
            scale = parent[..., :1] * theta[1][..., :1]
            centre = parent[..., :1] * theta[1][..., 1:] + parent[..., 1:]
            expected = np.concatenate([scale, centre], axis=-1).reshape(3, 4, 3)
    assert trace.layers[2].downsample_BN.min() >= 1
    assert (trace.regions[2][0, :, 0] == 0.5).all()  # 32 of 64 px
    assert (trace.regions[2][2, :, 0] == 1.0).all()  # the whole of a slide of 20 px


def test_the_frozen_patch_is_its_parent_at_higher_resolution() -> None:
    schedule = (2, 3, 2)
    model = network(config(schedule, frozen_patch=True)).eval()
    trace = run(model, by_layer(layer_colours(3), 2), 2, keep_views=True).trace
    np.testing.assert_array_equal(trace.regions[2][:, ::3], trace.regions[1])
    others = np.delete(trace.regions[2].reshape(2, 2, 3, 3), 0, axis=2)
    assert (others[..., 0] < trace.regions[1][:, :, None, 0]).all()
    assert not (trace.regions[3].reshape(2, 6, 2, 3)[:, :, 0] == trace.regions[2]).all(axis=-1).any()


def test_there_is_no_frozen_patch_without_its_setting_or_with_one_layer() -> None:
    plain = network(config((2, 3))).eval()
    trace = run(plain, by_layer(layer_colours(2), 1), 1).trace
    assert (trace.regions[2].reshape(2, 3, 3)[:, 0] != trace.regions[1][0]).any(axis=-1).all()
    single = network(config((3,), frozen_patch=True)).eval()
    assert (run(single, by_layer(layer_colours(1), 1), 1).trace.regions[1][..., 0] < 1).all()


def test_exploration_looks_at_tissue_and_depends_only_on_the_generator() -> None:
    def island(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return purple tissue, a fifth of the slide wide, on white glass."""
        tissue = (np.abs(x - 0.5) < 0.2) & (np.abs(y + 0.3) < 0.2)
        return np.where(tissue[..., None], [0.6, 0.3, 0.6], [0.95, 0.95, 0.95])

    settings = config((4,), scale_min=0.1, scale_max=0.1, centre="bounded")
    model, fetch = network(settings).eval(), formula_fetch([island] * 8, [SIDE_PX] * 8)

    def centres(seed: int) -> NDArray[np.float64]:
        end = run(model, fetch, 8, exploration=1.0, generator=torch.Generator().manual_seed(seed))
        return end.trace.regions[1][..., 1:]

    first = centres(0)
    assert (np.abs(first - [0.5, -0.3]) < 0.2 + 1 / 12).all()  # half a pixel of the map
    assert first.std(axis=(0, 1)).min() > 0.05
    np.testing.assert_array_equal(first, centres(0))
    assert (first != centres(1)).any()


def test_the_papers_network_has_a_stack_of_three_mixed_layers_for_every_node() -> None:
    with torch.device("meta"):
        model = MagNet(ModelConfig(), to_be_loaded=True)
    stacks = [layer.locator.stacks for layer in model.layers]
    assert [s.num_groups for s in stacks] == [3, 6, 18]  # of the tree (3, 2, 3)
    for s in stacks:
        mixed = [*s.layers, s.last]
        sizes = [[kernel.shape[-1] for kernel in layer.kernels] for layer in mixed]
        assert sizes == [[1, 3, 5, 7, 1]] * 3  # the last kernel is that of the pooled branch
        view = torch.zeros(1, s.num_groups, 3, 56, 56, device="meta")
        assert s(view).shape == (1, s.num_groups, 56, 56)  # one map each, of the input's size
    assert model.encoder.num_features == 2048
    assert [p.num_features for p in (model.early[0].encoder, model.late[0].encoder)] == [512, 512]


def test_auxiliary_classifiers_give_logits_only_in_training() -> None:
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
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("early", "late"):
        part = getattr(model, name)
        if part is not None:
            part.register_forward_pre_hook(lambda _, inputs, name=name: shapes.update({name: tuple(inputs[0].shape)}))
    run(model, by_layer(layer_colours(len(schedule)), 2), 2)

    def shape(layer: int) -> tuple[int, ...]:
        px = 24 if layer < len(schedule) else 32
        return (2, math.prod(schedule[:layer]), 3, px, px)

    expected = {"late": shape(late)} | ({"early": shape(early)} if early is not None else {})
    assert shapes == expected


def preset(name: str) -> tuple[ModelConfig, RecipeConfig]:
    """Return a preset with small views and small encoders."""
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_part_of_a_preset_receives_a_gradient(name: str, precision: str) -> None:
    settings, recipe = preset(name)
    model = network(settings).train()
    generator = torch.Generator().manual_seed(0)
    gradient_on = recipe.theta_gradient_on(0.0)
    fetch = by_layer(layer_colours(3), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        end = run(model, fetch, 2, exploration=0.5, theta_gradient=gradient_on, generator=generator)
        loss_B, parts = objective(end, torch.tensor([1.0, 0.0]), recipe, settings.zoom, threshold=-10.0)
        loss_B.sum().backward()
    assert loss_B.dtype == torch.float32
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


def test_half_precision_changes_regions_and_logits_only_slightly() -> None:
    model, fetch = network(config((2, 2), temperature=0.01)).eval(), by_layer(layer_colours(2), 1)
    full = run(model, fetch, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(model, fetch, 1)
    np.testing.assert_allclose(half.trace.regions[2], full.trace.regions[2], atol=0.05)
    assert half.logit_B.float().item() == pytest.approx(full.logit_B.item(), abs=0.05)


def test_parameter_groups_contain_every_trained_parameter_once() -> None:
    model = network(replace(with_auxiliary((2, 2)), classifier=ClassifierConfig(encoder="test_resnet", hidden=8)))
    groups = model.parameter_groups()
    ids = [id(p) for group in groups.values() for p in group]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in groups["locators"]} == {id(p) for p in model.layers.parameters()}
    frozen = network(config((2, 2), train_encoder=False))
    kept = {id(p) for p in frozen.encoder.parameters()}
    assert not kept & {id(p) for group in frozen.parameter_groups().values() for p in group}


def test_a_network_for_a_checkpoint_reads_no_weights_and_warns_about_none(caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_network_for_a_checkpoint_normalises_its_input_as_configured_for_its_initial_weights() -> None:
    """timm's weights of one architecture differ in their normalisation; they are not downloaded."""
    means = [
        make_encoder("inception_v3", tag, to_be_loaded=True).mean.flatten().tolist()
        for tag in ("tf_in1k", "gluon_in1k")
    ]
    assert means[0] == pytest.approx([0.5, 0.5, 0.5])
    assert means[1] == pytest.approx([0.485, 0.456, 0.406])
