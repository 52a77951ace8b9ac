"""Outlines of lesions on slides, and how much of a region they cover. For judging where a model looked, never for
training it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from xml.etree import ElementTree

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.errors import GEOSException
from shapely.geometry import shape

from service import storage
from service.cohort import bounded_files
from service.cohort.folder import is_folder
from service.errors import UsageError

Outlines = Mapping[str, shapely.Geometry]
"""By slide_id: all outlines of a slide, joined, in level-0 pixels."""

HIT = 0.1
"""A box that a lesion covers at least so far shows it."""

NOT_LESION = ("_2", "exclusion", "normal", "none of the above")
"""Groups of ASAP outlines that are cut out: CAMELYON16's _2 and Exclusion, CAMELYON17's normal; in lower case."""


NOT_OUTLINES = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, GEOSException)
"""What JSON of any other shape raises, deeply nested one too."""


def read_outlines(uri: str) -> Outlines:
    """Outlines of a cohort's lesions.

    Args:
        uri: GeoJSON, a collection of (multi)polygons in level-0 pixels with a ``slide_id`` property each; or a folder
            of ASAP XML files, as CAMELYON has them, each named by its slide_id.

    Raises:
        UsageError: it is no such file or folder.
    """
    if is_folder(uri):
        return _read_asap_folder(uri)
    data = storage.read_bytes(uri, most_bytes=bounded_files.OUTLINES_BYTES)
    try:
        features = json.loads(data)["features"]
        parts = defaultdict(list)
        for feature in features:
            parts[str(feature["properties"]["slide_id"])].append(shapely.make_valid(shape(feature["geometry"])))
    except NOT_OUTLINES as error:
        raise UsageError(
            f"no GeoJSON of outlines ({type(error).__name__}: {error}); want a FeatureCollection of polygons in level-0"
            " pixels, each with the property slide_id",
            uri=uri,
        ) from error
    return {slide_id: shapely.union_all(found) for slide_id, found in parts.items()}


def read_asap(data: bytes, uri: str) -> shapely.Geometry:
    """The lesions of one slide: all outlines of an ASAP XML file less those of the groups in `NOT_LESION`.

    Args:
        data: of the file; numbers may have a decimal comma.
        uri: for error messages.

    Raises:
        UsageError: it is no such file.
    """
    lesion: list[shapely.Geometry] = []
    not_lesion: list[shapely.Geometry] = []
    try:
        for annotation in ElementTree.fromstring(data).iter("Annotation"):
            points = sorted(annotation.iter("Coordinate"), key=lambda point: float(_number(point, "Order")))
            ring = [(float(_number(point, "X")), float(_number(point, "Y"))) for point in points]
            if len(ring) >= 3:  # dots and rulers are no outlines
                group = annotation.get("PartOfGroup", "").lower()
                (not_lesion if group in NOT_LESION else lesion).append(shapely.make_valid(shapely.Polygon(ring)))
    except (ElementTree.ParseError, ValueError, GEOSException) as error:
        raise UsageError(f"no ASAP annotations: {error}", uri=uri) from error
    return shapely.difference(shapely.union_all(lesion), shapely.union_all(not_lesion))


def _number(point: ElementTree.Element, name: str) -> str:
    text = point.get(name)
    if text is None:
        raise ValueError(f"a coordinate without {name}")
    return text.replace(",", ".")


def _read_asap_folder(folder: str) -> Outlines:
    uris = [uri for uri in storage.list_uris(folder.rstrip("/")) if uri.lower().endswith(".xml")]
    if not uris:
        raise UsageError("no XML files here; want ASAP annotations named SLIDE_ID.xml", uri=folder)
    found = {
        storage.name(uri)[: -len(".xml")]: read_asap(
            storage.read_bytes(uri, most_bytes=bounded_files.OUTLINES_BYTES), uri
        )
        for uri in uris
    }
    return {slide_id: outline for slide_id, outline in found.items() if not shapely.is_empty(outline)}


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
