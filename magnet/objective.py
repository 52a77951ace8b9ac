"""The training objective of a MagNet: the loss of each slide, and its parts by name.

Shape letters: B slides, N nodes of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from magnet.config import RecipeConfig, ZoomConfig
from magnet.evidence import value_loss, value_targets
from magnet.losses import cross_entropy, paradoxical
from magnet.zoom import FROZEN_LAYER, ZoomResult


def objective(
    zoomed: ZoomResult, label_B: Tensor, recipe: RecipeConfig, zoom: ZoomConfig, threshold: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of each slide and its parts.

    Args:
        zoomed: result of a zoom in training.
        label_B: labels of the slides, 0 or 1.
        recipe: weights of the parts.
        zoom: settings of the tree.
        threshold: patch logit above which a patch counts as evidence (`NegativeQuantile`); None before the first
            negative slide: then there is no value loss.

    Returns:
        The loss, (B,), and its parts by name without their weights, (B,) each, detached.

    Source: the paper, sections 3.3 and 4.3; the value loss is not the paper's (see `magnet.evidence`).
    """
    parts = {"classifier": cross_entropy(zoomed.logit_B, label_B)}
    weights = {"classifier": 1.0, "early": recipe.auxiliary_weight, "late": recipe.auxiliary_weight}
    if zoomed.early_B is not None:
        parts["early"] = cross_entropy(zoomed.early_B, label_B)
    if zoomed.late_B is not None:
        parts["late"] = cross_entropy(zoomed.late_B, label_B)
    if zoomed.early_B is not None and zoomed.late_B is not None:
        parts["paradoxical"] = paradoxical(zoomed.late_B, zoomed.early_B, label_B, margin=recipe.paradoxical_margin)
        weights["paradoxical"] = recipe.paradoxical_weight
    if recipe.value_weight > 0 and threshold is not None and zoomed.patch_BN is not None:
        parts["value"] = _value_loss(zoomed, zoomed.patch_BN, label_B, recipe, zoom, threshold)
        weights["value"] = recipe.value_weight
    # A part of weight 0 is reported but not added: its backward pass would only compute zeros.
    total_B = torch.stack([weights[name] * part for name, part in parts.items() if weights[name] > 0]).sum(dim=0)
    return total_B, {name: part.detach() for name, part in parts.items()}


def _value_loss(
    zoomed: ZoomResult, patch_BN: Tensor, label_B: Tensor, recipe: RecipeConfig, zoom: ZoomConfig, threshold: float
) -> Tensor:
    """Return the value loss (B,), a mean over layers: how far the maps are from what was found below them."""
    targets = value_targets(patch_BN.detach(), label_B, zoom.schedule, threshold)
    values = zoomed.value_BN
    if recipe.value_at == "patches":
        targets, values = [targets[-1]] * zoom.num_layers, zoomed.patch_value_BN
    losses = [
        value_loss(value_BN, target_BN, _choice_weights(layer, value_BN, zoom))
        for layer, (value_BN, target_BN) in enumerate(zip(values, targets, strict=True), start=1)
    ]
    return torch.stack(losses).mean(dim=0)


def _choice_weights(layer: int, like_BN: Tensor, zoom: ZoomConfig) -> Tensor:
    """Return weights like `like_BN`: 0 for frozen patches and all nodes below them, 1 for nodes that a map chose."""
    weight_BN = torch.ones_like(like_BN)
    if zoom.frozen_patch and layer == FROZEN_LAYER:
        num_below = like_BN.shape[1] // zoom.num_nodes[layer]
        weight_BN.unflatten(1, (-1, zoom.schedule[layer - 1], num_below))[:, :, 0] = 0
    return weight_BN
