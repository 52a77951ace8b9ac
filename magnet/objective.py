"""What a MagNet is trained for: the loss of each slide, and its parts by name.

Shape letters: B slides, N nodes of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from magnet.config import RecipeConfig, ZoomConfig
from magnet.evidence import value_loss, value_targets
from magnet.losses import cross_entropy, paradoxical
from magnet.zoom import FROZEN_LAYER, Zoomed


def objective(
    zoomed: Zoomed, label_B: Tensor, recipe: RecipeConfig, zoom: ZoomConfig, threshold: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss per slide (B,), and its unweighted parts (B,), detached.

    Args:
        zoomed: the end of a zoom in training.
        label_B: 0 or 1.
        recipe: weights.
        zoom: the tree.
        threshold: patch logit above which a patch counts as evidence (`NegativeQuantile`); None while no negative
            slide was seen, and then the value loss is left out.

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
        parts["value"] = _value_loss(zoomed, label_B, recipe, zoom, threshold)
        weights["value"] = recipe.value_weight
    total_B = torch.stack([weights[name] * part for name, part in parts.items() if weights[name] > 0]).sum(dim=0)
    return total_B, {name: part.detach() for name, part in parts.items()}


def _value_loss(zoomed: Zoomed, label_B: Tensor, recipe: RecipeConfig, zoom: ZoomConfig, threshold: float) -> Tensor:
    """How far the maps are from what was found below them, mean over layers; (B,)."""
    assert zoomed.patch_BN is not None
    targets = value_targets(zoomed.patch_BN.detach(), label_B, zoom.schedule, threshold)
    values = zoomed.value_BN
    if recipe.value_at == "patches":
        targets, values = [targets[-1]] * zoom.num_layers, zoomed.patch_value_BN
    losses = [
        value_loss(value_BN, target_BN, _chosen(layer, value_BN, zoom))
        for layer, (value_BN, target_BN) in enumerate(zip(values, targets, strict=True), start=1)
    ]
    return torch.stack(losses).mean(dim=0)


def _chosen(layer: int, like_BN: Tensor, zoom: ZoomConfig) -> Tensor:
    """1 for regions that a map chose and all below them, 0 for frozen ones and all below; as `like_BN`."""
    chosen_BN = torch.ones_like(like_BN)
    if zoom.frozen_patch and layer == FROZEN_LAYER:
        num_below = like_BN.shape[1] // zoom.num_nodes[layer]
        chosen_BN.unflatten(1, (-1, zoom.schedule[layer - 1], num_below))[:, :, 0] = 0
    return chosen_BN
