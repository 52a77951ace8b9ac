"""Predicted memory of a step compared with what a real step allocates, and its dependence on the settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, RecipeConfig, ZoomConfig
from magnet.fake_slide import formula_fetch, waves
from magnet.memory import ENCODER, GRADIENTS, OPTIMIZER, STACKS, WEIGHTS, count_parameters, predict_step_memory
from magnet.objective import objective
from magnet.presets import PRESETS
from magnet.windows import drive
from magnet.zoom import MagNet, ZoomOptions

pytestmark = pytest.mark.slow  # each runs or traces a whole step

RECIPE = RecipeConfig(batch=4, micro_batch=2)


def config(schedule: tuple[int, ...] = (2, 2), *, checkpointing: bool = False) -> ModelConfig:
    return ModelConfig(
        zoom=ZoomConfig(schedule=schedule, map_px=28, view_px=56, patch_px=64, frozen_patch=False, margin_px=2),
        locator=LocatorConfig(**PRESETS["evidence"]["model"]["locator"]),
        classifier=ClassifierConfig(encoder="test_resnet", head="evidence", checkpointing=checkpointing),
        auxiliary=AuxiliaryConfig(encoder=None),
    )


def allocated_bytes(model_config: ModelConfig, recipe: RecipeConfig, num_slides: int, trace: Path) -> int:
    """Return the peak of the bytes that a real step on the CPU allocates, by torch's count of its allocator's calls."""
    torch.manual_seed(0)
    model = MagNet(model_config, to_be_loaded=True).train()
    fetch = formula_fetch([waves([(1, 2), (2, 1), (1, 1)])] * num_slides, [1e5] * num_slides)

    def step() -> None:
        zoomed = drive(
            model.zoom(np.full(num_slides, 1e5), ZoomOptions(generator=torch.Generator().manual_seed(0))), fetch
        )
        objective(zoomed, torch.zeros(num_slides), recipe, model_config.zoom, 0.0)[0].sum().backward()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        current += event["args"]["Bytes"]
        peak = max(peak, current)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_prediction_is_within_15_percent_of_what_a_real_step_allocates(tmp_path: Path, checkpointing: bool) -> None:
    settings = config((3, 3), checkpointing=checkpointing)
    memory = predict_step_memory(settings, RECIPE, 4, in_flight=1, accumulated=False)
    moving = memory.peak_bytes - memory.parts[WEIGHTS] - memory.parts[OPTIMIZER]
    assert moving == pytest.approx(allocated_bytes(settings, RECIPE, 4, tmp_path / "trace.json"), rel=0.15)


def test_weights_gradients_and_adam_are_four_numbers_of_four_bytes_per_parameter() -> None:
    count = sum(count_parameters(config()).values())
    memory = predict_step_memory(config(), RECIPE, 1, in_flight=1, accumulated=True)
    assert memory.parts[GRADIENTS] == 4 * count
    assert memory.parts[OPTIMIZER] == 8 * count
    assert 4 * count <= memory.parts[WEIGHTS] <= 4.1 * count  # plus the statistics of normalisation layers


def test_the_memory_of_the_encoder_is_proportional_to_patches_and_micro_batch() -> None:
    def encoder(schedule: tuple[int, ...], slides: int) -> int:
        return predict_step_memory(config(schedule), RECIPE, slides, in_flight=1, accumulated=False).parts[ENCODER]

    reference = encoder((2, 2), 1)
    assert encoder((2, 2), 2) == pytest.approx(2 * reference, rel=0.02)
    assert encoder((2, 4), 1) == pytest.approx(2 * reference, rel=0.02)


def test_the_prediction_depends_on_precision_and_on_zooms_in_flight() -> None:
    def parts(precision: str, in_flight: int) -> dict[str, int]:
        recipe = replace(RECIPE, precision=precision)
        return dict(predict_step_memory(config(), recipe, 1, in_flight=in_flight, accumulated=False).parts)

    full, half, two = parts("fp32", 1), parts("bf16", 1), parts("fp32", 2)
    assert 0.45 < half[ENCODER] / full[ENCODER] < 0.75
    assert two[STACKS] == pytest.approx(2 * full[STACKS], rel=0.05)  # the other zoom waits for its last patches
    assert two[ENCODER] == pytest.approx(full[ENCODER], rel=0.1)


def test_the_classifier_of_the_paper_has_the_published_number_of_parameters() -> None:
    """Inception-v3 without classifier and auxiliary head: 21,785,568 (torchvision's table: 27,161,264 with both)."""
    count = count_parameters(ModelConfig())
    assert count[ENCODER] == 27_161_264 - (2048 * 1000 + 1000) - 3_326_696
