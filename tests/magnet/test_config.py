"""Settings: the numbers of the paper, and the messages about values out of range."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from magnet.config import (
    MAX_PATCHES,
    AuxiliaryConfig,
    ClassifierConfig,
    LocatorConfig,
    ModelConfig,
    RecipeConfig,
    ZoomConfig,
)


def test_the_defaults_are_those_of_the_paper() -> None:
    model, recipe = ModelConfig(), RecipeConfig()
    assert (model.zoom.map_px, model.zoom.view_px, model.zoom.patch_px) == (56, 112, 224)
    assert model.zoom.num_patches == 18
    assert (model.locator.scale_min, model.locator.centre, model.locator.share_stacks) == (0.05, "tanh", "node")
    assert (model.classifier.encoder, model.auxiliary.encoder) == ("inception_v3", "resnet18")
    assert (recipe.learning_rate, recipe.epochs, recipe.batch) == (3e-5, 200, 16)
    assert model.zoom.grey_tolerance == 15
    assert model.zoom.frozen_patch


@pytest.mark.parametrize(
    ("schedule", "num_nodes"),
    [((5,), (1, 5)), ((3, 2, 3), (1, 3, 6, 18)), ((3, 2, 3, 2), (1, 3, 6, 18, 36)), ((1, 1, 1, 1, 1), (1,) * 6)],
)
def test_the_nodes_of_a_schedule_are_its_running_products(
    schedule: tuple[int, ...], num_nodes: tuple[int, ...]
) -> None:
    zoom = ZoomConfig(schedule=schedule)
    assert zoom.num_nodes == num_nodes
    assert zoom.num_layers == len(schedule)
    assert zoom.num_patches == num_nodes[-1]


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (ZoomConfig, {"schedule": ()}, r"schedule = \(\): must be at least one layer"),
        (ZoomConfig, {"schedule": (3, 0)}, r"schedule = \(3, 0\): must be 1 to 16 regions per parent"),
        (ZoomConfig, {"schedule": (17,)}, "schedule .* must be 1 to 16 regions per parent"),
        (ZoomConfig, {"schedule": (16, 16, 16, 2)}, f"schedule .* at most {MAX_PATCHES} last patches, not 8192"),
        (ZoomConfig, {"map_px": 7}, "map_px = 7: must be 8 to 512 px"),
        (ZoomConfig, {"map_px": 513, "view_px": 513}, "map_px = 513: must be 8 to 512 px"),
        (ZoomConfig, {"view_px": 28}, r"view_px = 28: must be at least map_px \(56\)"),
        (ZoomConfig, {"view_px": 100}, r"view_px = 100: must be a multiple of map_px \(56\)"),
        (ZoomConfig, {"patch_px": 15}, "patch_px = 15: must be 16 to 1024 px"),
        (ZoomConfig, {"patch_px": 1025}, "patch_px = 1025: must be 16 to 1024 px"),
        (ZoomConfig, {"margin_px": -1}, "margin_px = -1: must be 0 to 64 px"),
        (ZoomConfig, {"margin_px": 65}, "margin_px = 65: must be 0 to 64 px"),
        (ZoomConfig, {"grey_tolerance": -1}, "grey_tolerance = -1: must be 0 to 255, or null"),
        (ZoomConfig, {"grey_tolerance": 256}, "grey_tolerance = 256: must be 0 to 255, or null"),
        (LocatorConfig, {"channels": 0}, "channels = 0: must be 1 to 256"),
        (LocatorConfig, {"channels": 257}, "channels = 257: must be 1 to 256"),
        (LocatorConfig, {"inner_stride": 3}, "inner_stride = 3: must be 1 or 2"),
        (LocatorConfig, {"temperature": 0.0}, r"temperature = 0\.0: must be above 0"),
        (LocatorConfig, {"scale_min": 0.0}, r"scale_min = 0\.0: must be between 0 and 1"),
        (LocatorConfig, {"scale_min": 1.0}, r"scale_min = 1\.0: must be between 0 and 1"),
        (LocatorConfig, {"scale_min": 0.5, "scale_max": 0.4}, r"scale_max = 0\.4: must be scale_min to 1"),
        (LocatorConfig, {"scale_max": 1.1}, r"scale_max = 1\.1: must be scale_min to 1"),
        (LocatorConfig, {"peak_radius": 0.0}, r"peak_radius = 0\.0: must be 0 to 2"),
        (LocatorConfig, {"peak_radius": 2.1}, r"peak_radius = 2\.1: must be 0 to 2"),
        (LocatorConfig, {"sampler_noise": 0.0}, r"sampler_noise = 0\.0: must be above 0"),
        (ClassifierConfig, {"encoder": ""}, "encoder = '': must be the name of a timm model"),
        (ClassifierConfig, {"hidden": 0}, "hidden = 0: must be 1 to 8192"),
        (ClassifierConfig, {"hidden": 8193}, "hidden = 8193: must be 1 to 8192"),
        (RecipeConfig, {"epochs": 0}, "epochs = 0: must be at least 1"),
        (RecipeConfig, {"batch": 0}, "batch = 0: must be at least 1"),
        (RecipeConfig, {"micro_batch": 0}, "micro_batch = 0: must be at least 1"),
        (RecipeConfig, {"batch": 10, "micro_batch": 4}, "batch = 10: must be a multiple of 4"),
        (RecipeConfig, {"learning_rate": 0.0}, r"learning_rate = 0\.0: must be above 0"),
        (RecipeConfig, {"locator_learning_rate": 0.0}, r"locator_learning_rate = 0\.0: must be above 0, or null"),
        (
            RecipeConfig,
            {"explore_until": 0.5, "explore_end": 0.4},
            r"explore_end = 0\.4: must be explore_until \(0\.5\) to 1",
        ),
        (RecipeConfig, {"explore_until": -0.1, "explore_end": 0.4}, r"explore_until = -0\.1: must be 0 to 1"),
        (RecipeConfig, {"explore_end": 1.1}, r"explore_end = 1\.1: must be explore_until \(0\.0\) to 1"),
        (RecipeConfig, {"value_quantile": 1.0}, r"value_quantile = 1\.0: must be between 0 and 1"),
        (RecipeConfig, {"value_quantile": 0.0}, r"value_quantile = 0\.0: must be between 0 and 1"),
        (RecipeConfig, {"value_weight": -1.0}, r"value_weight = -1\.0: must be 0 or more"),
        (RecipeConfig, {"auxiliary_weight": -1.0}, r"auxiliary_weight = -1\.0: must be 0 or more"),
        (RecipeConfig, {"paradoxical_weight": -1.0}, r"paradoxical_weight = -1\.0: must be 0 or more"),
        (RecipeConfig, {"weight_decay": -1.0}, r"weight_decay = -1\.0: must be 0 or more"),
        (RecipeConfig, {"clip_norm": 0.0}, r"clip_norm = 0\.0: must be above 0, or null"),
        (RecipeConfig, {"seed": -1}, "seed = -1: must be 0 or more"),
    ],
)
def test_a_value_out_of_range_is_rejected_with_its_name_and_the_allowed_range(
    kind: Any, wrong: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**wrong)


@pytest.mark.parametrize(
    ("kind", "edge"),
    [
        (ZoomConfig, {"schedule": (16, 16, 16)}),
        (ZoomConfig, {"map_px": 8, "view_px": 8, "patch_px": 16, "margin_px": 0, "grey_tolerance": 0}),
        (ZoomConfig, {"map_px": 512, "view_px": 512, "patch_px": 1024, "margin_px": 64, "grey_tolerance": 255}),
        (ZoomConfig, {"grey_tolerance": None}),
        (LocatorConfig, {"scale_min": 0.3, "scale_max": 0.3, "peak_radius": 2.0, "inner_stride": 2}),
        (RecipeConfig, {"explore_until": 0.0, "explore_end": 1.0, "batch": 8, "micro_batch": 8}),
        (RecipeConfig, {"value_weight": 0.0, "clip_norm": None, "seed": 0}),
    ],
)
def test_the_bounds_are_valid_values(kind: Any, edge: Any) -> None:
    kind(**edge)


@pytest.mark.parametrize(("early", "late"), [(0, 3), (3, 3), (2, 2)])
def test_the_early_layer_must_come_before_the_late_layer(early: int, late: int) -> None:
    message = rf"auxiliary\.early_layer = {early}: must be 1 to {late - 1}"
    with pytest.raises(ValueError, match=message):
        ModelConfig(auxiliary=AuxiliaryConfig(early_layer=early, late_layer=late))


def test_the_late_layer_must_be_below_the_root() -> None:
    with pytest.raises(ValueError, match=r"auxiliary\.late_layer = 0: must be at least 1"):
        ModelConfig(zoom=ZoomConfig(schedule=(2,)), auxiliary=AuxiliaryConfig(late_layer=0))


def test_layers_of_auxiliary_classifiers_are_not_checked_without_an_encoder() -> None:
    ModelConfig(auxiliary=AuxiliaryConfig(encoder=None, early_layer=3, late_layer=1))


@pytest.mark.parametrize(("num_layers", "late"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3)])
def test_the_late_layer_is_the_last_layer_of_a_shallow_tree(num_layers: int, late: int) -> None:
    assert ModelConfig(zoom=ZoomConfig(schedule=(2,) * num_layers)).late_layer == late


def test_exploration_decreases_linearly_from_one_to_zero() -> None:
    recipe = RecipeConfig(explore_until=0.25, explore_end=0.75)
    shares = [recipe.exploration(p) for p in (0.0, 0.24, 0.25, 0.5, 0.625, 0.75, 1.0)]
    assert shares == pytest.approx([1, 1, 1, 0.5, 0.25, 0, 0])


def test_there_is_no_exploration_by_default_and_it_can_end_abruptly() -> None:
    assert RecipeConfig().exploration(0.0) == 0
    abrupt = RecipeConfig(explore_until=0.5, explore_end=0.5)
    assert [abrupt.exploration(p) for p in (0.49, 0.5)] == [1, 0]


@pytest.mark.parametrize(
    ("kind", "at_start", "at_end"), [("on", True, True), ("off", False, False), ("late", False, True)]
)
def test_the_gradient_reaches_the_regions_at_the_configured_time(kind: Any, at_start: bool, at_end: bool) -> None:
    recipe = RecipeConfig(theta_gradient=kind, explore_until=0.2, explore_end=0.5)
    assert [recipe.theta_gradient_on(p) for p in (0.0, 0.49)] == [at_start] * 2
    assert [recipe.theta_gradient_on(p) for p in (0.5, 1.0)] == [at_end] * 2


def test_settings_are_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        ZoomConfig().map_px = 8  # type: ignore[misc]  # the assignment must fail
