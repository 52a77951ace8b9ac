"""Outlines of lesions on slides, and how much of a region they cover. For judging where a model looked, never for
training it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.errors import GEOSException
from shapely.geometry import shape

from service import storage
from service.errors import UsageError

Outlines = Mapping[str, shapely.Geometry]
"""By slide_id: all outlines of a slide, joined, in level-0 pixels."""

HIT = 0.1
"""A box that a lesion covers at least so far shows it."""


def read_outlines(uri: str) -> Outlines:
    """Outlines from GeoJSON: a collection of (multi)polygons in level-0 pixels with a ``slide_id`` property each.

    Raises:
        UsageError: it is no such file.
    """
    try:
        features = json.loads(storage.read_bytes(uri))["features"]
        parts = defaultdict(list)
        for feature in features:
            parts[str(feature["properties"]["slide_id"])].append(shapely.make_valid(shape(feature["geometry"])))
    except (ValueError, KeyError, TypeError, AttributeError, GEOSException) as error:  # of JSON of any other shape
        raise UsageError(
            f"no GeoJSON of outlines ({type(error).__name__}: {error}); want a FeatureCollection of polygons in level-0"
            " pixels, each with the property slide_id",
            uri=uri,
        ) from error
    return {slide_id: shapely.union_all(found) for slide_id, found in parts.items()}


def covered(box_l0: NDArray[np.float64], outline: shapely.Geometry | None) -> NDArray[np.float64]:
    """Share of each box's area inside an outline.

    Args:
        box_l0: (N, 3) x, y and side in level-0 pixels, as `magnet.regions.to_level0` gives them.
        outline: of the same slide; None covers nothing.

    Returns:
        (N,) 0 to 1.
    """
    x, y, side = box_l0.T
    if outline is None:
        return np.zeros(len(box_l0))
    boxes = shapely.box(x, y, x + side, y + side)
    return np.asarray(shapely.area(shapely.intersection(boxes, outline)) / side**2)
