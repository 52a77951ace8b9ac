"""The loss of each slide and its parts, computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magnet.config import RecipeConfig, ZoomConfig
from magnet.objective import objective
from magnet.trace import Trace
from magnet.zoom import ZoomResult

LABEL = torch.tensor([1.0, 0.0])
TREE = ZoomConfig(schedule=(2, 2), frozen_patch=False)


def entropy(logit: float, label: int) -> float:
    return math.log(1 + math.exp(-logit if label else logit))


def zoomed(**parts: Any) -> ZoomResult:
    """Return the result of a zoom into a positive and a negative slide."""
    known: dict[str, Any] = {"early_B": None, "late_B": None, "patch_BN": None, "value_BN": []}
    logit = torch.tensor([0.5, -1.0], requires_grad=True)
    trace = Trace(layers=(), running_BN=np.empty((2, 0)))
    return ZoomResult(**({"logit_B": logit, "running_BN": logit[:, None], "trace": trace} | known | parts))


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, requires_grad=True)


def losses(end: ZoomResult, recipe: RecipeConfig, threshold: float | None = None, zoom: ZoomConfig = TREE) -> Any:
    loss_B, parts = objective(end, LABEL, recipe, zoom, threshold)
    assert loss_B.shape == (2,)
    assert all(part.shape == (2,) and not part.requires_grad for part in parts.values())
    return loss_B.tolist(), {name: part.tolist() for name, part in parts.items()}


def test_without_other_parts_the_loss_is_that_of_the_classifier() -> None:
    loss, parts = losses(zoomed(), RecipeConfig())
    assert loss == pytest.approx([entropy(0.5, 1), entropy(-1.0, 0)])
    assert parts == {"classifier": pytest.approx(loss)}


def test_auxiliary_and_paradoxical_losses_are_added_with_their_weights() -> None:
    end = zoomed(early_B=leaf(2.0, 1.0), late_B=leaf(0.5, -0.5))
    recipe = RecipeConfig(auxiliary_weight=0.5, paradoxical_weight=3.0, paradoxical_margin=0.1)
    loss, parts = losses(end, recipe)
    classifier = [entropy(0.5, 1), entropy(-1.0, 0)]
    early = [entropy(2.0, 1), entropy(1.0, 0)]
    late = [entropy(0.5, 1), entropy(-0.5, 0)]
    hinge = [late[0] - early[0] + 0.1, 0.0]  # the late logit is worse on the first slide and much better on the second
    assert parts["early"] == pytest.approx(early)
    assert parts["late"] == pytest.approx(late)
    assert parts["paradoxical"] == pytest.approx(hinge)
    expected = [c + 0.5 * (e + k) + 3 * h for c, e, k, h in zip(classifier, early, late, hinge, strict=True)]
    assert loss == pytest.approx(expected)


def test_a_single_auxiliary_classifier_has_no_paradoxical_loss() -> None:
    loss, parts = losses(zoomed(late_B=leaf(0.5, -0.5)), RecipeConfig())
    assert set(parts) == {"classifier", "late"}
    assert loss == pytest.approx([2 * entropy(0.5, 1), entropy(-1.0, 0) + entropy(-0.5, 0)])


def test_the_paradoxical_loss_has_no_gradient_to_the_early_layer() -> None:
    early, late = leaf(2.0, 1.0), leaf(0.5, -0.5)
    recipe = RecipeConfig(auxiliary_weight=0.0)
    loss_B, _ = objective(zoomed(early_B=early, late_B=late), LABEL, recipe, TREE, None)
    by_early, by_late = torch.autograd.grad(loss_B.sum(), [early, late], allow_unused=True)
    assert by_early is None
    assert by_late.tolist() == pytest.approx([-1 / (1 + math.exp(0.5)), 0.0])  # of softplus(-x) at 0.5


def evidence() -> ZoomResult:
    """Return a result with four patches of two slides; children of one parent are adjacent."""
    patch = torch.tensor([[0.0, 2.0, -1.0, 0.9], [5.0, 5.0, 5.0, 5.0]], requires_grad=True)
    return zoomed(patch_BN=patch, value_BN=[leaf(0.3, -0.3).repeat(2, 1), leaf(1.0, 2.0, 3.0, 4.0).repeat(2, 1)])


def test_maps_are_trained_on_the_evidence_below_their_regions() -> None:
    recipe = RecipeConfig(value_weight=2.0)
    loss, parts = losses(evidence(), recipe, threshold=1.0)
    # Above 1.0 on the positive slide: patch 1, below node 0 of layer 1. Nothing counts on the negative slide.
    first = [(entropy(0.3, 1) + entropy(-0.3, 0)) / 2, (entropy(0.3, 0) + entropy(-0.3, 0)) / 2]
    target = [0, 1, 0, 0]
    second = [
        sum(entropy(v, f) for v, f in zip((1.0, 2.0, 3.0, 4.0), targets, strict=True)) / 4
        for targets in (target, [0] * 4)
    ]
    expected = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert parts["value"] == pytest.approx(expected)
    assert loss == pytest.approx([c + 2 * v for c, v in zip(parts["classifier"], expected, strict=True)])


def at_patches() -> ZoomResult:
    """Return the result of `evidence` with each layer's values at the last patches."""
    end = evidence()
    values = [leaf(0.3, 0.4, -0.3, -0.4).repeat(2, 1), leaf(1.0, 2.0, 3.0, 4.0).repeat(2, 1)]
    return replace(end, patch_value_BN=values)


def test_maps_of_all_layers_can_be_trained_at_the_last_patches() -> None:
    recipe = RecipeConfig(value_weight=1.0, value_at="patches")
    _, parts = losses(at_patches(), recipe, threshold=1.0)
    layers = (0.3, 0.4, -0.3, -0.4), (1.0, 2.0, 3.0, 4.0)
    for slide, targets in enumerate([(0, 1, 0, 0), (0, 0, 0, 0)]):
        each = [entropy(v, f) for values in layers for v, f in zip(values, targets, strict=True)]
        assert parts["value"][slide] == pytest.approx(sum(each) / 8)


def test_patches_below_a_frozen_patch_do_not_train_the_map_that_did_not_choose_it() -> None:
    tree = ZoomConfig(schedule=(2, 2), frozen_patch=True)
    _, parts = losses(at_patches(), RecipeConfig(value_weight=1.0, value_at="patches"), threshold=1.0, zoom=tree)
    first = sum(entropy(v, f) for v, f in zip((0.3, 0.4, -0.3, -0.4), (0, 1, 0, 0), strict=True)) / 4
    second = (entropy(2.0, 1) + entropy(4.0, 0)) / 2
    assert parts["value"][0] == pytest.approx((first + second) / 2)


def test_frozen_patches_train_no_map() -> None:
    tree = ZoomConfig(schedule=(2, 2), frozen_patch=True)
    _, parts = losses(evidence(), RecipeConfig(value_weight=1.0), threshold=1.0, zoom=tree)
    first = (entropy(0.3, 1) + entropy(-0.3, 0)) / 2
    second = (entropy(2.0, 1) + entropy(4.0, 0)) / 2  # patches 0 and 2 are the frozen ones
    assert parts["value"][0] == pytest.approx((first + second) / 2)


def test_the_gradient_of_the_value_loss_reaches_maps_and_not_patches() -> None:
    end = evidence()
    assert end.patch_BN is not None
    loss_B, _ = objective(end, LABEL, RecipeConfig(value_weight=1.0), TREE, 1.0)
    by_patch, by_value = torch.autograd.grad(loss_B.sum(), [end.patch_BN, end.value_BN[0]], allow_unused=True)
    assert by_patch is None
    assert by_value.abs().min() > 0


@pytest.mark.parametrize(
    ("recipe", "threshold"), [(RecipeConfig(value_weight=1.0), None), (RecipeConfig(value_weight=0.0), 1.0)]
)
def test_there_is_no_value_loss_before_calibration_or_without_weight(
    recipe: RecipeConfig, threshold: float | None
) -> None:
    loss, parts = losses(evidence(), recipe, threshold)
    assert set(parts) == {"classifier"}
    assert loss == pytest.approx(parts["classifier"])


def test_a_part_without_weight_is_reported_and_not_added() -> None:
    loss, parts = losses(zoomed(late_B=leaf(0.5, -0.5)), RecipeConfig(auxiliary_weight=0.0))
    assert parts["late"] == pytest.approx([entropy(0.5, 1), entropy(-0.5, 0)])
    assert loss == pytest.approx(parts["classifier"])
