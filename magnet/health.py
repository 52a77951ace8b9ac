"""Is a MagNet looking? Figures of where a model's regions lie, and what to say when a layer has collapsed.

A loss can fall while every region lies on glass, on its sibling, or in the same place of every slide. Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EMPTY_TISSUE = 0.05
"""A region with less tissue than this share of its area shows nothing."""
MAX_OVERLAP, MAX_EMPTY, MIN_SPREAD = 0.7, 0.7, 0.02
"""Beyond these a layer has collapsed."""


@dataclass(frozen=True, slots=True)
class Looked:
    """Where a zoom looked on one slide."""

    regions: tuple[Floats, ...]
    """Per layer 0 to L, (N, 3) in root coordinates."""
    tissue: tuple[NDArray[np.float32], ...]
    """Per layer 0 to L, (N,) share of each view that is tissue."""


def health(looked: Sequence[Looked], schedule: Sequence[int], scale_min: float) -> dict[str, float]:
    """Figures per layer, over all slides; names such as ``layer1_overlap``.

    * overlap: area that siblings share over the area of the smaller one, mean over pairs (none where P_l = 1);
    * floor: share of regions no larger than `scale_min` of their parent;
    * tissue: mean share of a region's area that is tissue; the rest is background;
    * empty: share of regions that show next to no tissue;
    * spread: how far regions of one place in the tree lie apart on different slides, as the standard deviation of
      their centres in half-sides of their parents. A layer that does not look at what it sees has none.
    """
    result: dict[str, float] = {}
    for layer, num_children in enumerate(schedule, start=1):
        parent = np.stack([slide.regions[layer - 1] for slide in looked])  # S, N, 3
        child = np.stack([slide.regions[layer] for slide in looked]).reshape(*parent.shape[:2], num_children, 3)
        tissue = np.stack([slide.tissue[layer] for slide in looked])
        scale = child[..., 0] / parent[..., None, 0]
        centre = (child[..., 1:] - parent[:, :, None, 1:]) / parent[:, :, None, :1]
        if num_children > 1:
            result[f"layer{layer}_overlap"] = float(_overlaps(child).mean())
        result[f"layer{layer}_floor"] = float((scale <= scale_min * 1.001).mean())
        result[f"layer{layer}_tissue"] = float(tissue.mean())
        result[f"layer{layer}_empty"] = float((tissue < EMPTY_TISSUE).mean())
        result[f"layer{layer}_spread"] = float(centre.std(axis=0).mean())
        result[f"layer{layer}_scale"] = float(scale.mean())
    return result


def movement(before: Mapping[str, Looked], after: Mapping[str, Looked]) -> dict[str, float]:
    """How far regions moved, per layer: mean distance of centres in half-sides of the root, over the common slides."""
    common = sorted(before.keys() & after.keys())
    if not common:
        return {}
    layers = range(1, len(after[common[0]].regions))
    moved = {
        layer: [np.hypot(*(after[s].regions[layer] - before[s].regions[layer])[:, 1:].T).mean() for s in common]
        for layer in layers
    }
    return {f"layer{layer}_moved": float(np.mean(values)) for layer, values in moved.items()}


def complaints(figures: Mapping[str, float], schedule: Sequence[int]) -> list[str]:
    """What is wrong with the layers that have collapsed, one sentence each."""
    found = []
    for layer in range(1, len(schedule) + 1):
        overlap, empty, spread = (
            figures.get(f"layer{layer}_{name}", fine) for name, fine in (("overlap", 0), ("empty", 0), ("spread", 1))
        )
        if empty > MAX_EMPTY:
            found.append(f"layer {layer}: {empty:.0%} of its regions show no tissue")
        if overlap > MAX_OVERLAP:
            found.append(f"layer {layer}: siblings share {overlap:.0%} of their area, they show the same")
        if spread < MIN_SPREAD:
            found.append(f"layer {layer}: its regions lie in the same place on every slide (spread {spread:.3f})")
    return found


def _overlaps(child: Floats) -> Floats:
    """Shared area over the smaller one's, for every pair of siblings; child (..., P, 3)."""
    first, second = np.triu_indices(child.shape[-2], k=1)
    a, b = child[..., first, :], child[..., second, :]
    reach = a[..., :1] + b[..., :1] - np.abs(a[..., 1:] - b[..., 1:])  # both half-sides less the distance, x and y
    smaller = 2 * np.minimum(a[..., :1], b[..., :1])
    shared = np.clip(reach, 0, smaller).prod(axis=-1)
    return np.asarray(shared / smaller[..., 0] ** 2)
