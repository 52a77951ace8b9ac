"""The regions of a score as QuPath reads them: GeoJSON in level-0 pixels, with classifications and measurements.

In QuPath: File, Import objects from file. Boxes are annotations, locked, of the class "MagNet layer N".
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from PIL import ImageColor

from service.results.pictures import colour_of

_MEASURED = {
    "running_probability": "Probability after this patch",
    "patch_probability": "Probability of this patch",
    "value": "Map value",
    "tissue": "Tissue share",
    "downsample": "Downsample",
    "width_um": "Width \N{MICRO SIGN}m",
}
"""Columns of a region that become measurements."""


def to_geojson(row: Mapping[str, Any]) -> bytes:
    """A scored row's regions; the root, which is the slide itself, is left out."""
    regions = [region for region in row["regions"] if region["layer"]]
    last, count = max(region["layer"] for region in row["regions"]), dict[int, int]()
    features = []
    for region in regions:
        count[region["layer"]] = count.get(region["layer"], 0) + 1
        features.append(_feature(row["slide_id"], region, count[region["layer"]], last))
    collection = {
        "type": "FeatureCollection",
        "features": features,
        "slide_id": row["slide_id"],
        "probability": row["probability"],
        "research_use_only": True,
    }
    return json.dumps(collection, indent=1).encode()


def _feature(slide_id: str, region: Mapping[str, Any], number: int, last: int) -> dict[str, Any]:
    layer, (x, y, side) = region["layer"], (region[name] for name in ("x_l0", "y_l0", "side_l0"))
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    name = f"layer {layer}, region {number}" if layer < last else f"patch {number}"
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{slide_id}/{layer}/{number}")),  # the same in every run
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "annotation",
            "name": name,
            "isLocked": True,
            "classification": {"name": f"MagNet layer {layer}", "color": list(ImageColor.getrgb(colour_of(layer)))},
            "measurements": {
                label: region[column] for column, label in _MEASURED.items() if region.get(column) is not None
            },
        },
    }
