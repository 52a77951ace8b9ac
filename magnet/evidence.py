"""Where was evidence found? Targets for the maps of a zoom, from slide labels and patch logits alone.

A map's score at the centre of a region is trained to say whether a last patch below that region showed more evidence
than patches of negative slides do. That trains the maps without the gradient through the sampler.

Shapes: ``B`` slides, ``N`` nodes of a layer (children of one parent side by side), ``P`` children of a parent, ``H W``
a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NegativeQuantile(nn.Module):
    """Running quantile of the patch logits of negative slides: what a patch must exceed to count as evidence.

    Without this calibration a patch that says nothing scores near the base rate, above normal tissue, and the maps
    learn to avoid what they should look at.

    Args:
        quantile: 0.98 lets one patch in fifty of a negative slide through.
        momentum: weight of a new batch in the moving average.
    """

    value: Tensor
    """Scalar; +inf until a negative slide was seen, so that nothing counts as evidence yet."""

    def __init__(self, quantile: float = 0.98, momentum: float = 0.05) -> None:
        super().__init__()
        if not (0 < quantile < 1 and 0 < momentum <= 1):
            raise ValueError(f"quantile {quantile}, momentum {momentum}: must be within (0, 1) and (0, 1]")
        self.quantile, self.momentum = quantile, momentum
        self.register_buffer("value", torch.tensor(torch.inf))

    @torch.no_grad()
    def update(self, patch_logit_BN: Tensor, label_B: Tensor) -> None:
        """Take in a batch; its positive slides are ignored, and a batch without negative ones changes nothing."""
        negative = patch_logit_BN[label_B == 0].float()
        if negative.numel() == 0:
            return
        new = negative.flatten().quantile(self.quantile)
        self.value.copy_(torch.where(self.value.isinf(), new, self.value.lerp(new, self.momentum)))


@torch.no_grad()
def value_targets(
    patch_logit_BN: Tensor, label_B: Tensor, schedule: Sequence[int], threshold: float | Tensor
) -> list[Tensor]:
    """Whether evidence was found below each node.

    Args:
        patch_logit_BN: logits of the last patches, N the product of `schedule`.
        label_B: the slides' labels, 0 or 1.
        schedule: regions taken per parent at layers 1 to L.
        threshold: logit above which a patch is evidence.

    Returns:
        For each layer 1 to L, shape (B, nodes of that layer), 0 or 1 in float32: 1 where the slide is positive and the
        best last patch below the node exceeds `threshold`.
    """
    num_patches = prod(schedule)
    if patch_logit_BN.shape[1] != num_patches:
        raise ValueError(f"{patch_logit_BN.shape[1]} patches: schedule {tuple(schedule)} has {num_patches}")
    found_BN = (patch_logit_BN > threshold) & (label_B[:, None] > 0)
    num_nodes = [prod(schedule[: layer + 1]) for layer in range(len(schedule))]
    return [found_BN.unflatten(1, (n, num_patches // n)).any(dim=-1).float() for n in num_nodes]


def value_at(map_HW: Tensor, point_K2: Tensor) -> Tensor:
    """Scores of maps at positions in [-1, 1], bilinear, continued beyond the outer pixel centres.

    Args:
        map_HW: shape (..., H, W).
        point_K2: K points of each map, (x, y) in the map's own coordinates, shape (..., K, 2); no gradient flows to
            them.

    Returns:
        Shape (..., K), float32 (float64 for float64).
    """
    exact = map_HW if map_HW.dtype == torch.float64 else map_HW.float()
    maps_N1HW = exact.reshape(-1, 1, *map_HW.shape[-2:])
    grid_N1K2 = point_K2.detach().to(exact.dtype).reshape(len(maps_N1HW), 1, -1, 2)
    picked = F.grid_sample(maps_N1HW, grid_N1K2, mode="bilinear", padding_mode="border", align_corners=False)
    return picked.view(point_K2.shape[:-1])


def value_at_patches(map_BNPHW: Tensor, parent_BN3: Tensor, patch_BM3: Tensor) -> Tensor:
    """Scores of a layer's maps at the centres of the last patches below, each on the map that its branch came from.

    Args:
        map_BNPHW: a map for each child of each parent.
        parent_BN3: the parents, in root coordinates.
        patch_BM3: the last patches, M a multiple of N * P, in the tree's order.

    Returns:
        (B, M).
    """
    patch_BNPK3 = patch_BM3.unflatten(1, (*map_BNPHW.shape[1:3], -1))
    parent_BN113 = parent_BN3[:, :, None, None]
    point_BNPK2 = (patch_BNPK3[..., 1:] - parent_BN113[..., 1:]) / parent_BN113[..., :1]
    return value_at(map_BNPHW, point_BNPK2).flatten(1)


def value_loss(value_BN: Tensor, target_BN: Tensor, weight_BN: Tensor | None = None) -> Tensor:
    """Binary cross-entropy between scores at the centres taken and what was found there; (B,), a mean over nodes.

    Args:
        value_BN: scores as logits.
        target_BN: from `value_targets`.
        weight_BN: 0 for nodes whose centre no map chose (a frozen patch), else 1.
    """
    loss_BN = F.binary_cross_entropy_with_logits(value_BN.float(), target_BN, reduction="none")
    if weight_BN is None:
        return loss_BN.mean(dim=1)
    return (loss_BN * weight_BN).sum(dim=1) / weight_BN.sum(dim=1).clamp_min(1)
