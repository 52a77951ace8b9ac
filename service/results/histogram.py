"""The histogram of a cohort's probabilities, as positions in a drawing of 700 x 176 units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_BINS = 20
LEFT, WIDTH, BASE, HEIGHT = 40, 640, 150, 130
"""Left end and width of the axis, its y position, and the height of the highest bar, in units of the drawing."""
GROUPS = (("known positive", "pos", 1), ("known negative", "neg", 0), ("no label", "un", None))
"""Groups of slides from the bottom of a bar to its top: name, style class, label."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Slides of one group in one bin."""

    style: str
    """Style class of the group."""
    x: int
    """Left edge."""
    y: float
    """Top edge."""
    height: float
    """Height."""
    low: float
    """Lower end of the bin, a probability."""
    high: float
    """Upper end of the bin."""
    num_slides: int
    """Number of slides."""


@dataclass(frozen=True, slots=True)
class Group:
    """An entry of the legend."""

    name: str
    """Name of the group."""
    style: str
    """Style class of the group."""
    num_slides: int
    """Number of slides in the group."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """A stacked histogram of probabilities."""

    bars: list[Bar]
    """Bars with at least one slide."""
    groups: list[Group]
    """Groups that have slides."""
    highest: int
    """Number of slides in the fullest bin."""
    threshold: float
    """Probability from which a call is positive."""
    threshold_x: float
    """Position of the threshold on the axis."""
    ticks: list[tuple[float, float]]
    """Position and probability of each tick on the axis."""


def draw_histogram(scored: Sequence[Mapping[str, Any]]) -> Histogram:
    """Sort the probabilities of scored slides into 20 bins of equal width, with one bar per group in each.

    Args:
        scored: rows of scored slides, at least one.
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)
    counts = {
        style: np.histogram([row["probability"] for row in scored if row["label"] == label], edges)[0]
        for _, style, label in GROUPS
    }
    highest = max(1, int(np.sum(list(counts.values()), axis=0).max()))
    bars = []
    for k in range(NUM_BINS):
        y = float(BASE)
        for _, style, _ in GROUPS:
            height = HEIGHT * counts[style][k] / highest
            y -= height
            if height:
                # Two units of each bin's width stay free, so that adjacent bars can be distinguished.
                x = LEFT + WIDTH // NUM_BINS * k
                bars.append(Bar(style, x, y, height, edges[k], edges[k + 1], int(counts[style][k])))
    groups = [Group(name, style, int(counts[style].sum())) for name, style, _ in GROUPS]
    threshold = scored[0]["threshold"]
    return Histogram(
        bars=bars,
        groups=[group for group in groups if group.num_slides],
        highest=highest,
        threshold=threshold,
        threshold_x=LEFT + WIDTH * threshold,
        ticks=[(LEFT + WIDTH * p, p) for p in (0, 0.25, 0.5, 0.75, 1)],
    )
