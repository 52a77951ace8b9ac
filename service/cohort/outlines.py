"""Outlines of lesions on slides, and how much of a region they cover.

They serve to evaluate where a model looked. Training never reads them.
"""

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
"""Union of all outlines of each slide in level-0 pixels, by slide_id."""

MIN_HIT_COVERAGE = 0.1
"""Least share of a box that a lesion must cover for the box to count as a hit, 0 to 1."""

NOT_LESION = ("_2", "exclusion", "normal", "none of the above")
"""Lower-case names of the groups of ASAP outlines that are cut out of lesions: _2 and Exclusion in CAMELYON16, normal
in CAMELYON17."""

PARSE_ERRORS = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, GEOSException)
"""Errors raised by JSON that is not a GeoJSON collection of outlines; deeply nested JSON raises RecursionError."""


def read_outlines(uri: str) -> Outlines:
    """Read the outlines of a cohort's lesions.

    Args:
        uri: GeoJSON file, a collection of (multi)polygons in level-0 pixels with the property ``slide_id``; or a folder
            of ASAP XML files, such as CAMELYON's, whose names are slide_ids.

    Raises:
        UsageError: if the file or folder has another content.
    """
    if is_folder(uri):
        return _read_asap_folder(uri)
    data = storage.read_bytes(uri, most_bytes=bounded_files.OUTLINES_BYTES)
    try:
        features = json.loads(data)["features"]
        parts = defaultdict(list)
        for feature in features:
            # Outlines drawn by hand often cross themselves, which shapely's functions do not accept.
            parts[str(feature["properties"]["slide_id"])].append(shapely.make_valid(shape(feature["geometry"])))
    except PARSE_ERRORS as error:
        raise UsageError(
            f"is not a GeoJSON file of outlines ({type(error).__name__}: {error}); write a FeatureCollection of "
            "polygons in level-0 pixels, each with the property slide_id",
            uri=uri,
        ) from error
    return {slide_id: shapely.union_all(polygons) for slide_id, polygons in parts.items()}


def read_asap(data: bytes, uri: str) -> shapely.Geometry:
    """Parse the lesions of one slide: all outlines of an ASAP XML file less those of the groups in `NOT_LESION`.

    Args:
        data: content of the file; numbers may have a decimal comma.
        uri: URI of the file, for error messages.

    Raises:
        UsageError: if the content is not ASAP XML.
    """
    lesions: list[shapely.Geometry] = []
    not_lesions: list[shapely.Geometry] = []
    try:
        for annotation in ElementTree.fromstring(data).iter("Annotation"):
            points = sorted(annotation.iter("Coordinate"), key=lambda point: float(_read_number(point, "Order")))
            ring = [(float(_read_number(point, "X")), float(_read_number(point, "Y"))) for point in points]
            if len(ring) >= 3:  # dots and rulers have fewer points and enclose no area
                group = annotation.get("PartOfGroup", "").lower()
                (not_lesions if group in NOT_LESION else lesions).append(shapely.make_valid(shapely.Polygon(ring)))
    except (ElementTree.ParseError, ValueError, GEOSException) as error:
        raise UsageError(f"is not a file of ASAP annotations: {error}", uri=uri) from error
    return shapely.difference(shapely.union_all(lesions), shapely.union_all(not_lesions))


def _read_number(point: ElementTree.Element, name: str) -> str:
    text = point.get(name)
    if text is None:
        raise ValueError(f"a coordinate has no attribute {name}")
    return text.replace(",", ".")


def _read_asap_folder(folder: str) -> Outlines:
    uris = [uri for uri in storage.list_uris(folder.rstrip("/")) if uri.lower().endswith(".xml")]
    if not uris:
        raise UsageError("the folder has no XML files; name ASAP annotations SLIDE_ID.xml", uri=folder)
    outlines = {
        storage.name(uri)[: -len(".xml")]: read_asap(storage.read_bytes(uri, most_bytes=bounded_files.ASAP_BYTES), uri)
        for uri in uris
    }
    # A file may outline only tissue without lesions. Such a slide counts as one without outlines.
    return {slide_id: outline for slide_id, outline in outlines.items() if not shapely.is_empty(outline)}


def measure_coverage(box_l0: NDArray[np.float64], outline: shapely.Geometry | None) -> NDArray[np.float64]:
    """Compute the share of each box's area that an outline covers.

    Args:
        box_l0: (N, 3) x, y and side in level-0 pixels, as `magnet.regions.to_level0` returns them.
        outline: outline of the same slide; None covers nothing.

    Returns:
        (N,) float64, 0 to 1.
    """
    x, y, side = box_l0.T
    if outline is None:
        return np.zeros(len(box_l0))
    boxes = shapely.box(x, y, x + side, y + side)
    return np.asarray(shapely.area(shapely.intersection(boxes, outline)) / side**2)
