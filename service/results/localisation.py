"""How well the regions that a model read agree with outlines of the lesions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from service.cohort.outlines import MIN_HIT_COVERAGE, Outlines, measure_coverage
from service.results.froc import Detections, Froc, compute_froc


@dataclass(frozen=True, slots=True)
class LayerCoverage:
    """How much of the lesions the regions of one layer cover."""

    layer: int
    """Layer of the zoom tree, 1 or more."""
    share: float
    """Share of the lesions' area inside the layer's regions, mean over slides, 0 to 1."""
    um_per_px: float | None
    """Median pixel size of the windows read, in micrometres; None if no slide states its pixel size."""


@dataclass(frozen=True, slots=True)
class Localisation:
    """Agreement of a scored cohort with outlines of the lesions."""

    num_slides: int
    """Number of scored slides that have outlines."""
    num_slides_hit: int
    """Number of those slides on which a lesion covers enough of a last patch (`service.cohort.outlines`)."""
    layers: tuple[LayerCoverage, ...]
    """Coverage by layer, the root left out."""
    froc: Froc
    """Free-response ROC of the last patches."""

    def to_json(self) -> bytes:
        """Return the content of `localisation.json`, whose keys other programs rely on."""
        sensitivity = {str(rate): share for rate, share in self.froc.points}
        values = {
            "num_slides": self.num_slides,
            "hits": self.num_slides_hit,
            "seen": [asdict(layer) for layer in self.layers],
            "froc": asdict(self.froc) | {"sensitivity": sensitivity, "score": self.froc.score},
            "hit_rate": self.num_slides_hit / self.num_slides,
            "hit_is_covered_at_least": MIN_HIT_COVERAGE,
        }
        return (json.dumps(values, indent=2) + "\n").encode()


def measure_localisation(table: pa.Table, outlines: Outlines) -> Localisation | None:
    """Compare the regions of a score table with outlines of the lesions.

    Args:
        table: score table.
        outlines: outlines of the lesions by slide_id. A slide without outlines counts as free of lesions if its label
            is 0; otherwise it is left out, because its lesions are unknown.

    Returns:
        The agreement; None if no scored slide has outlines.
    """
    rows = [row for row in table.to_pylist() if row["status"] == "scored"]
    with_lesions = [row for row in rows if row["slide_id"] in outlines]
    if not with_lesions:
        return None
    without_lesions = [row for row in rows if row["slide_id"] not in outlines and row["label"] == 0]
    num_hit = sum(
        bool(
            (measure_coverage(_get_boxes(_get_last_patches(row)), outlines[row["slide_id"]]) >= MIN_HIT_COVERAGE).any()
        )
        for row in with_lesions
    )
    curve = compute_froc(
        [_find_detections(row, outlines.get(row["slide_id"])) for row in [*with_lesions, *without_lesions]]
    )
    num_layers = with_lesions[0]["schedule"].count(",") + 2  # the schedule has no entry for the root
    layers = tuple(_measure_layer(layer, with_lesions, outlines) for layer in range(1, num_layers))
    return Localisation(len(with_lesions), num_hit, layers, curve)


def _measure_layer(layer: int, rows: Sequence[Mapping[str, Any]], outlines: Outlines) -> LayerCoverage:
    shares, pixel_sizes_um = [], []
    for row in rows:
        regions = [region for region in row["regions"] if region["layer"] == layer]
        x, y, side = _get_boxes(regions).T
        # Regions overlap: their union counts an area once.
        union, lesion = shapely.union_all(shapely.box(x, y, x + side, y + side)), outlines[row["slide_id"]]
        shares.append(float(shapely.area(shapely.intersection(union, lesion)) / shapely.area(lesion)))
        if row["mpp_x"] is not None:
            pixel_sizes_um += [region["downsample"] * (row["mpp_x"] + row["mpp_y"]) / 2 for region in regions]
    median_um = float(np.median(pixel_sizes_um)) if pixel_sizes_um else None
    return LayerCoverage(layer, float(np.mean(shares)), median_um)


def _find_detections(row: Mapping[str, Any], outline: shapely.Geometry | None) -> Detections:
    """Return the centres of the last patches as detections; a patch without a probability gets the slide's."""
    regions = _get_last_patches(row)
    probabilities = [region["patch_probability"] for region in regions]
    scores = np.array([row["probability"] if p is None else p for p in probabilities], dtype=np.float64)
    lesions = [] if outline is None else [part for part in shapely.get_parts(outline) if shapely.area(part) > 0]
    box = _get_boxes(regions)
    centre = shapely.points(box[:, :2] + box[:, 2:] / 2)
    lesion_of_patch = np.full(len(regions), -1, dtype=np.int64)
    for n, lesion in enumerate(lesions):
        lesion_of_patch[shapely.intersects(lesion, centre)] = n
    return Detections(scores, lesion_of_patch, len(lesions))


def _get_last_patches(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    last = max(region["layer"] for region in row["regions"])
    return [region for region in row["regions"] if region["layer"] == last]


def _get_boxes(regions: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Return (N, 3) x, y and side of regions in level-0 pixels; (0, 3) if there are none."""
    return np.array([[r["x_l0"], r["y_l0"], r["side_l0"]] for r in regions], dtype=np.float64).reshape(-1, 3)
