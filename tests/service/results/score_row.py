"""Rows of a score table with invented values."""

from __future__ import annotations

from typing import Any

from service.cohort.manifest import Slide
from service.results.scores import REGION, empty_row


def make_region(layer: int, x: float, y: float, side: float, **more: Any) -> dict[str, Any]:
    values = {"layer": layer, "x_l0": x, "y_l0": y, "side_l0": side, "downsample": 2.0, "level": 1, "tissue": 0.5}
    return {field.name: None for field in REGION} | values | more


def make_scored_row(slide_id: str, probability: float, label: int | None = None, **more: Any) -> dict[str, Any]:
    """Return the row of a slide of 1,000 x 800 px at .5 um/px; last patches are at (100, 100) and (600, 600)."""
    slide = Slide(row=1, slide_id=slide_id, uri=f"/{slide_id}.svs", patient_id=f"p-{slide_id}", label=label)
    regions = [
        make_region(0, 0, -100, 1000),
        make_region(1, 50, 50, 300, value=0.4, parent=0, width_um=150.0),
        make_region(1, 500, 500, 300, value=0.3, parent=0, width_um=150.0),
        make_region(2, 100, 100, 100, parent=1, running_probability=0.5, width_um=50.0),
        make_region(2, 600, 600, 100, parent=2, running_probability=probability, width_um=50.0),
    ]
    values = {"status": "scored", "probability": probability, "running": [0.5, probability], "regions": regions}
    values |= {"schedule": "2,1", "threshold": 0.5, "call": int(probability >= 0.5), "num_regions": 5, "windows": 10}
    values |= {"bytes_read": 1_000_000, "requests": 12, "size_bytes": 50_000_000, "read_s": 0.5, "compute_s": 0.25}
    values |= {"tiles": 40, "decode_s": 0.05, "cache_hits": 8, "disk_hits": 0}
    values |= {"mpp_x": 0.5, "mpp_y": 0.5, "width_l0": 1000, "height_l0": 800, "ended": "complete", "flags": []}
    values |= {"model": "models:/magnet@champion", "model_version": "3", "model_sha256": "ab" * 32, "frames": 1}
    return empty_row(slide) | values | {"software": "torch 2"} | more


def make_unscored_row(slide_id: str, status: str, reason: str) -> dict[str, Any]:
    slide = Slide(row=1, slide_id=slide_id, uri=f"/{slide_id}.svs", patient_id=f"p-{slide_id}")
    return empty_row(slide) | {"status": status, "reason": reason}
