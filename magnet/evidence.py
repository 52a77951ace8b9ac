"""Targets for the maps of a zoom: where evidence was found, from slide labels and patch logits alone.

A map's value at the centre of a region is trained to predict whether a last patch below that region showed more
evidence than patches of negative slides do. This trains the maps without the gradient through the sampler.

Shape letters: B slides, N nodes of a layer (children of one parent are adjacent), M last patches, P children of a
parent, K points, H W map pixels, 2 (x, y), 3 (s, tx, ty).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NegativeQuantile(nn.Module):
    """Running quantile of the patch logits of negative slides: a patch must exceed it to count as evidence.

    Without this calibration a patch without information scores near the base rate, above normal tissue, and the maps
    learn to avoid the places that they should look at.

    Args:
        quantile: between 0 and 1; 0.98 lets one patch in fifty of a negative slide count.
        momentum: weight of a new batch in the moving average, above 0 and at most 1.

    Raises:
        ValueError: an argument is out of range.
    """

    value: Tensor
    """Scalar; +inf before the first negative slide, so that nothing counts as evidence until then."""

    def __init__(self, quantile: float = 0.98, momentum: float = 0.05) -> None:
        super().__init__()
        if not (0 < quantile < 1 and 0 < momentum <= 1):
            raise ValueError(f"quantile {quantile}, momentum {momentum}: must be within (0, 1) and (0, 1]")
        self.quantile, self.momentum = quantile, momentum
        self.register_buffer("value", torch.tensor(torch.inf))

    @torch.no_grad()
    def update(self, patch_logit_BN: Tensor, label_B: Tensor) -> None:
        """Update the quantile with the negative slides of a batch; without any it stays as it is."""
        negative = patch_logit_BN[label_B == 0].float()
        if negative.numel() == 0:
            return
        new = negative.flatten().quantile(self.quantile)
        self.value.copy_(torch.where(self.value.isinf(), new, self.value.lerp(new, self.momentum)))


@torch.no_grad()
def value_targets(
    patch_logit_BM: Tensor, label_B: Tensor, schedule: Sequence[int], threshold: float | Tensor
) -> list[Tensor]:
    """Return for each node whether evidence was found below it.

    Args:
        patch_logit_BM: logits of the last patches, M the product of `schedule`.
        label_B: labels of the slides, 0 or 1.
        schedule: regions per parent at layers 1 to L.
        threshold: logit above which a patch is evidence.

    Returns:
        For each layer 1 to L, shape (B, nodes of that layer), 0 or 1 in float32: 1 where the slide is positive and the
        best last patch below the node exceeds `threshold`.

    Raises:
        ValueError: the number of patches is not that of the schedule.
    """
    num_patches = prod(schedule)
    if patch_logit_BM.shape[1] != num_patches:
        raise ValueError(f"{patch_logit_BM.shape[1]} patches: schedule {tuple(schedule)} has {num_patches}")
    evidence_BM = (patch_logit_BM > threshold) & (label_B[:, None] > 0)
    num_nodes = [prod(schedule[: layer + 1]) for layer in range(len(schedule))]
    return [evidence_BM.unflatten(1, (n, num_patches // n)).any(dim=-1).float() for n in num_nodes]


def interpolate_map(map_HW: Tensor, point_K2: Tensor) -> Tensor:
    """Interpolate maps bilinearly at points; beyond the outer pixel centres the values are continued.

    Args:
        map_HW: maps, shape (..., H, W).
        point_K2: K points of each map, (x, y) in the map's own coordinates in [-1, 1], shape (..., K, 2); they receive
            no gradient.

    Returns:
        Shape (..., K), float32 (float64 for float64).
    """
    exact = map_HW if map_HW.dtype == torch.float64 else map_HW.float()
    maps_N1HW = exact.reshape(-1, 1, *map_HW.shape[-2:])
    grid_N1K2 = point_K2.detach().to(exact.dtype).reshape(len(maps_N1HW), 1, -1, 2)
    value_N11K = F.grid_sample(maps_N1HW, grid_N1K2, mode="bilinear", padding_mode="border", align_corners=False)
    return value_N11K.view(point_K2.shape[:-1])


def interpolate_at_patches(map_BNPHW: Tensor, parent_BN3: Tensor, patch_BM3: Tensor) -> Tensor:
    """Return the values of a layer's maps at the centres of the last patches below, each from its own branch's map.

    Args:
        map_BNPHW: a map for each child of each parent.
        parent_BN3: the parents, in root coordinates.
        patch_BM3: the last patches, M a multiple of N * P, in the order of the tree.

    Returns:
        (B, M).
    """
    patch_BNPK3 = patch_BM3.unflatten(1, (*map_BNPHW.shape[1:3], -1))
    parent_BN113 = parent_BN3[:, :, None, None]
    # From root coordinates to the parent's own, in which its maps are given.
    point_BNPK2 = (patch_BNPK3[..., 1:] - parent_BN113[..., 1:]) / parent_BN113[..., :1]
    return interpolate_map(map_BNPHW, point_BNPK2).flatten(1)


def value_loss(value_BN: Tensor, target_BN: Tensor, weight_BN: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy between values and targets.

    Args:
        value_BN: values as logits.
        target_BN: from `value_targets`.
        weight_BN: 0 for nodes whose centre no map chose (a frozen patch), 1 for the others; None: 1 for all.

    Returns:
        (B,), the mean over the nodes of weight 1; 0 where there are none.
    """
    loss_BN = F.binary_cross_entropy_with_logits(value_BN.float(), target_BN, reduction="none")
    if weight_BN is None:
        return loss_BN.mean(dim=1)
    return (loss_BN * weight_BN).sum(dim=1) / weight_BN.sum(dim=1).clamp_min(1)
