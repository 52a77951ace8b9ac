"""Where the model looked, judged by outlines of the lesions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from service.cohort.outlines import HIT, Outlines, covered
from service.results.froc import RATES, Detections, Froc, froc


@dataclass(frozen=True, slots=True)
class LayerSeen:
    """What one layer saw of the lesions."""

    layer: int
    share: float
    """Of the lesions' area, mean over slides."""
    um_per_px: float | None
    """Pixel size of the windows read, the median; None where no slide tells its own."""


@dataclass(frozen=True, slots=True)
class Localisation:
    """How well lesions are found."""

    num_slides: int
    """Scored slides with outlines."""
    hits: int
    """Of those, slides where a last patch is covered at least a tenth by a lesion."""
    seen: tuple[LayerSeen, ...]
    froc: Froc

    def to_json(self) -> bytes:
        """As a small file."""
        rates = dict(zip(map(str, RATES), self.froc.sensitivity, strict=True))
        values = asdict(self) | {"hit_rate": self.hits / self.num_slides, "hit_is_covered_at_least": HIT}
        values["froc"] |= {"sensitivity": rates, "score": self.froc.score}
        return (json.dumps(values, indent=2) + "\n").encode()


def localisation(table: pa.Table, outlines: Outlines) -> Localisation | None:
    """Judge the scored slides of a table.

    Args:
        table: of the scores.
        outlines: of the lesions. Slides without any count as free of lesions where their label is 0, and not at all
            where it is 1 or unknown.

    Returns:
        None if no scored slide has an outline.
    """
    rows = [row for row in table.to_pylist() if row["status"] == "scored"]
    ill = [row for row in rows if row["slide_id"] in outlines]
    if not ill:
        return None
    healthy = [row for row in rows if row["slide_id"] not in outlines and row["label"] == 0]
    hits = sum(bool((covered(_boxes(_last(row)), outlines[row["slide_id"]]) >= HIT).any()) for row in ill)
    curve = froc([_detections(row, outlines.get(row["slide_id"])) for row in [*ill, *healthy]])
    num_layers = ill[0]["schedule"].count(",") + 2
    seen = tuple(_seen(layer, ill, outlines) for layer in range(1, num_layers))
    return Localisation(len(ill), hits, seen, curve)


def _seen(layer: int, rows: Sequence[Mapping[str, Any]], outlines: Outlines) -> LayerSeen:
    shares, pixels = [], []
    for row in rows:
        regions = [region for region in row["regions"] if region["layer"] == layer]
        x, y, side = _boxes(regions).T
        union, lesion = shapely.union_all(shapely.box(x, y, x + side, y + side)), outlines[row["slide_id"]]
        shares.append(float(shapely.area(shapely.intersection(union, lesion)) / shapely.area(lesion)))
        if row["mpp_x"] is not None:
            pixels += [region["downsample"] * (row["mpp_x"] + row["mpp_y"]) / 2 for region in regions]
    return LayerSeen(layer, float(np.mean(shares)), float(np.median(pixels)) if pixels else None)


def _detections(row: Mapping[str, Any], outline: shapely.Geometry | None) -> Detections:
    """The last patches' centres. One that the model gives no probability of its own has the slide's."""
    regions = _last(row)
    own = [region["patch_probability"] for region in regions]
    scores = np.array([row["probability"] if one is None else one for one in own], dtype=np.float64)
    lesions = [] if outline is None else [part for part in shapely.get_parts(outline) if shapely.area(part) > 0]
    box = _boxes(regions)
    centre = shapely.points(box[:, :2] + box[:, 2:] / 2)
    lesion = np.full(len(regions), -1, dtype=np.int64)
    for n, part in enumerate(lesions):
        lesion[shapely.intersects(part, centre)] = n
    return Detections(scores, lesion, len(lesions))


def _last(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    last = max(region["layer"] for region in row["regions"])
    return [region for region in row["regions"] if region["layer"] == last]


def _boxes(regions: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    return np.array([[r["x_l0"], r["y_l0"], r["side_l0"]] for r in regions], dtype=np.float64).reshape(-1, 3)
