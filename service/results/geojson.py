"""The regions of a scored slide as GeoJSON for QuPath, in level-0 pixels, with classifications and measurements.

In QuPath, use File, Import objects from file. Each region becomes a locked annotation of the class "MagNet layer N".
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from PIL import ImageColor

from service.results.pictures import get_layer_colour

MEASUREMENTS = {
    "running_probability": "Probability after this patch",
    "patch_probability": "Probability of this patch",
    "value": "Map value",
    "tissue": "Tissue share",
    "downsample": "Downsample",
    "width_um": "Width \N{MICRO SIGN}m",
}
"""Columns of a region that become measurements, and their names in QuPath."""


def to_geojson(row: Mapping[str, Any]) -> bytes:
    """Return the regions of a scored row as GeoJSON. The root region is left out: it is the slide itself."""
    regions = [region for region in row["regions"] if region["layer"]]
    last_layer = max(region["layer"] for region in row["regions"])
    num_by_layer = dict[int, int]()
    features = []
    for region in regions:
        number = num_by_layer[region["layer"]] = num_by_layer.get(region["layer"], 0) + 1
        features.append(_make_feature(row["slide_id"], region, number, last_layer))
    collection = {
        "type": "FeatureCollection",
        "features": features,
        "slide_id": row["slide_id"],
        "probability": row["probability"],
        "research_use_only": True,
    }
    return json.dumps(collection, indent=1).encode()


def _make_feature(slide_id: str, region: Mapping[str, Any], number: int, last_layer: int) -> dict[str, Any]:
    layer, (x, y, side) = region["layer"], (region[name] for name in ("x_l0", "y_l0", "side_l0"))
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    name = f"layer {layer}, region {number}" if layer < last_layer else f"patch {number}"
    return {
        "type": "Feature",
        # QuPath expects a UUID. It is derived from the region's place, so that each run gives an object the same id.
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{slide_id}/{layer}/{number}")),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "annotation",
            "name": name,
            "isLocked": True,
            "classification": {
                "name": f"MagNet layer {layer}",
                "color": list(ImageColor.getrgb(get_layer_colour(layer))),
            },
            "measurements": {
                name: region[column] for column, name in MEASUREMENTS.items() if region.get(column) is not None
            },
        },
    }
