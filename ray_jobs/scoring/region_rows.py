"""The regions of a zoom as the score table stores them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np

from magnet.regions import to_level0, to_um
from magnet.zoom import ZoomResult
from service.slides.slide import SlideInfo


def to_region_rows(
    zoomed: ZoomResult, info: SlideInfo, running: Sequence[float], schedule: Sequence[int]
) -> list[dict[str, Any]]:
    """Return every region of a slide's zoom, layer by layer.

    Args:
        zoomed: result of the zoom; its first slide counts.
        info: the slide's size, levels and pixel size.
        running: the slide's probability after each last patch.
        schedule: regions per parent, layer by layer.

    Returns:
        Rows as `service.results.scores.REGION` describes them.
    """
    return [row for layer in range(len(schedule) + 1) for row in _layer_rows(layer, zoomed, info, running, schedule)]


def _layer_rows(
    layer: int, zoomed: ZoomResult, info: SlideInfo, running: Sequence[float], schedule: Sequence[int]
) -> Iterator[dict[str, Any]]:
    record = zoomed.trace.layers[layer]
    box_N3 = to_level0(record.region_BN3[0], info.size_px)
    um_N4 = to_um(box_N3, info.mpp_xy) if info.mpp_xy is not None else [(None,) * 4] * len(box_N3)
    # The parent column counts rows of the whole zoom: regions of the layers above the parents' come first.
    above = sum([1, *accumulate(schedule, mul)][: max(0, layer - 1)])
    patch = None if zoomed.patch_BN is None else zoomed.patch_BN[0].double().sigmoid().tolist()
    last = layer == len(schedule)
    for n, (box, um) in enumerate(zip(box_N3.tolist(), um_N4, strict=True)):
        downsample = float(np.float32(record.downsample_BN[0, n]))  # float32, as the table stores it
        yield {
            "layer": layer,
            "parent": above + n // schedule[layer - 1] if layer else None,
            **dict(zip(("x_l0", "y_l0", "side_l0"), box, strict=True)),
            **dict(zip(("x_um", "y_um", "width_um", "height_um"), um, strict=True)),
            "level": _find_level(info, downsample),
            "downsample": downsample,
            "tissue": float(record.tissue_BN[0, n]),
            "value": None if record.value_BN is None else float(record.value_BN[0, n]),
            "patch_probability": patch[n] if last and patch is not None else None,
            "running_probability": running[n] if last else None,
        }


def _find_level(info: SlideInfo, downsample: float) -> int:
    """Return the level that a window with this downsample was made from: the coarsest that is not coarser."""
    return sum(level.downsample <= downsample * (1 + 1e-6) for level in info.levels) - 1
