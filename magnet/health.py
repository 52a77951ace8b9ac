"""Health of a MagNet: statistics of where its regions are, which show whether a layer has collapsed.

A loss can fall while all regions are on glass, on their siblings, or in the same place of every slide. This module
needs numpy only.

Shape letters: S slides, N nodes of a layer, P children per parent, 3 (s, tx, ty).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EMPTY_TISSUE = 0.05
"""Share of its area, 0 to 1; a region with less tissue counts as empty."""
MAX_OVERLAP, MAX_EMPTY, MIN_SPREAD = 0.7, 0.7, 0.02
"""Limits of overlap, share of empty regions, and spread beyond which a layer counts as collapsed."""


@dataclass(frozen=True, slots=True)
class ViewedRegions:
    """The regions of a zoom into one slide."""

    regions: tuple[Floats, ...]
    """Per layer 0 to L, (N, 3): regions in root coordinates."""
    tissue: tuple[NDArray[np.float32], ...]
    """Per layer 0 to L, (N,): share of each view that is tissue, 0 to 1."""


def measure_health(looked: Sequence[ViewedRegions], schedule: Sequence[int], scale_min: float) -> dict[str, float]:
    """Compute statistics of each layer over all slides.

    * overlap: area that siblings share, divided by the area of the smaller one, mean over pairs (absent if P_l = 1);
    * floor: share of regions that are no larger than `scale_min` of their parent;
    * tissue: mean share of a region's area that is tissue; the rest is background;
    * empty: share of regions that show almost no tissue;
    * spread: standard deviation over the slides of the centres of one node of the tree, in half-sides of its parent. It
      is 0 for a layer that does not react to what it sees;
    * scale: mean half-side in half-sides of the parent.

    Args:
        looked: regions of each slide.
        schedule: regions per parent at layers 1 to L.
        scale_min: smallest half-side of a child in its parent.

    Returns:
        Statistics by name, such as ``layer1_overlap``.
    """
    result: dict[str, float] = {}
    for layer, num_children in enumerate(schedule, start=1):
        parent_SN3 = np.stack([slide.regions[layer - 1] for slide in looked])
        child_SM3 = np.stack([slide.regions[layer] for slide in looked])
        child_SNP3 = child_SM3.reshape(*parent_SN3.shape[:2], num_children, 3)  # M = N P
        tissue_SM = np.stack([slide.tissue[layer] for slide in looked])
        scale_SNP = child_SNP3[..., 0] / parent_SN3[..., None, 0]
        centre_SNP2 = (child_SNP3[..., 1:] - parent_SN3[:, :, None, 1:]) / parent_SN3[:, :, None, :1]
        if num_children > 1:
            result[f"layer{layer}_overlap"] = float(_overlaps(child_SNP3).mean())
        # Scales are computed in float32, so that the smallest one is met only up to rounding.
        result[f"layer{layer}_floor"] = float((scale_SNP <= scale_min * 1.001).mean())
        result[f"layer{layer}_tissue"] = float(tissue_SM.mean())
        result[f"layer{layer}_empty"] = float((tissue_SM < EMPTY_TISSUE).mean())
        result[f"layer{layer}_spread"] = float(centre_SNP2.std(axis=0).mean())
        result[f"layer{layer}_scale"] = float(scale_SNP.mean())
    return result


def measure_movement(before: Mapping[str, ViewedRegions], after: Mapping[str, ViewedRegions]) -> dict[str, float]:
    """Compute how far regions moved between two epochs, over the slides that both have.

    Args:
        before: regions by slide.
        after: the same, later.

    Returns:
        Mean distance of the centres in half-sides of the root, by names such as ``layer1_moved``; empty without common
        slides.
    """
    common = sorted(before.keys() & after.keys())
    if not common:
        return {}
    layers = range(1, len(after[common[0]].regions))
    moved = {
        layer: [np.hypot(*(after[s].regions[layer] - before[s].regions[layer])[:, 1:].T).mean() for s in common]
        for layer in layers
    }
    return {f"layer{layer}_moved": float(np.mean(values)) for layer, values in moved.items()}


def describe_collapses(figures: Mapping[str, float], schedule: Sequence[int]) -> list[str]:
    """Describe the layers that have collapsed.

    Args:
        figures: result of `measure_health`.
        schedule: regions per parent at layers 1 to L.

    Returns:
        One sentence per fault; empty if all layers are healthy.
    """
    sentences = []
    for layer in range(1, len(schedule) + 1):
        overlap, empty, spread = (
            figures.get(f"layer{layer}_{name}", healthy)
            for name, healthy in (("overlap", 0), ("empty", 0), ("spread", 1))
        )
        if empty > MAX_EMPTY:
            sentences.append(f"layer {layer}: {empty:.0%} of its regions show no tissue")
        if overlap > MAX_OVERLAP:
            sentences.append(f"layer {layer}: siblings share {overlap:.0%} of their area and show the same")
        if spread < MIN_SPREAD:
            sentences.append(f"layer {layer}: its regions are in the same place on every slide (spread {spread:.3f})")
    return sentences


def _overlaps(child_P3: Floats) -> Floats:
    """Return the shared area over that of the smaller one for every pair of siblings; children (..., P, 3)."""
    first, second = np.triu_indices(child_P3.shape[-2], k=1)
    a, b = child_P3[..., first, :], child_P3[..., second, :]
    reach = a[..., :1] + b[..., :1] - np.abs(a[..., 1:] - b[..., 1:])  # both half-sides less the distance, x and y
    smaller = 2 * np.minimum(a[..., :1], b[..., :1])
    shared = np.clip(reach, 0, smaller).prod(axis=-1)
    return np.asarray(shared / smaller[..., 0] ** 2)
