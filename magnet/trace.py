"""The trace of a zoom: one record per layer, in numpy arrays on the CPU.

Score tables, figures and checks are made from the trace of the pass that computed the score, so that they show what the
model really saw. This module needs only numpy.

Shape letters: B slides, N nodes of a layer, H W pixels, C = 3 colour channels, 3 (s, tx, ty).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRecord:
    """The nodes of one layer: where they are and what they show."""

    region_BN3: NDArray[np.float64]
    """Regions in root coordinates."""
    downsample_BN: NDArray[np.float64]
    """Level-0 pixels per pixel of the window that was read, 1 or more."""
    tissue_BN: NDArray[np.float32]
    """Share of each view that shows tissue, 0 to 1."""
    value_BN: NDArray[np.float32] | None
    """The locator's value at each region's centre, a logit; None for the root and where no locator chose the region."""
    view_BNHWC: NDArray[np.uint8] | None
    """Views as the model saw them; None unless the zoom was asked to keep them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """The records of a zoom into B slides, and its running prediction."""

    layers: tuple[LayerRecord, ...]
    """Records of layers 0 (the root) to L."""
    running_BN: NDArray[np.float64]
    """Probability of the slide after each last patch that was read."""

    @property
    def regions(self) -> list[NDArray[np.float64]]:
        """Regions (B, N, 3) of each layer, in root coordinates."""
        return [record.region_BN3 for record in self.layers]


def concatenate_nodes(records: Sequence[LayerRecord]) -> LayerRecord:
    """Join records of parts of one layer along their nodes.

    Args:
        records: at least one; all have the same slides, and either all or none have values and views.
    """

    def join(name: str) -> NDArray:
        return np.concatenate([getattr(record, name) for record in records], axis=1)

    first = records[0]
    return LayerRecord(
        region_BN3=join("region_BN3"),
        downsample_BN=join("downsample_BN"),
        tissue_BN=join("tissue_BN"),
        value_BN=None if first.value_BN is None else join("value_BN"),
        view_BNHWC=None if first.view_BNHWC is None else join("view_BNHWC"),
    )
