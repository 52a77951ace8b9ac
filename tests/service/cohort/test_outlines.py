"""Reading of outlines, and how much of a box they cover."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from service.cohort.outlines import measure_coverage, read_asap, read_outlines
from service.errors import UsageError


def polygon(slide_id: str, *points: tuple[float, float]) -> dict[str, Any]:
    ring = [*points, points[0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"slide_id": slide_id}}


def write_geojson(path: Path, *features: dict[str, Any]) -> str:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return str(path)


def test_covered_shares_equal_shares_of_areas(tmp_path: Path) -> None:
    triangle = polygon("a", (0, 0), (100, 0), (0, 100))
    outlines = read_outlines(write_geojson(tmp_path / "o.geojson", triangle))
    boxes = np.array([[0, 0, 100], [0, 0, 50], [50, 50, 50], [200, 200, 10], [-50, 0, 100]], dtype=float)
    # half of the square; all of it; only a corner; nothing; the triangle's left half in the box's right half
    assert measure_coverage(boxes, outlines["a"]) == pytest.approx([0.5, 1, 0, 0, (5000 - 1250) / 10000])


def test_overlapping_outlines_of_a_slide_are_counted_once(tmp_path: Path) -> None:
    square = (0, 0), (10, 0), (10, 10), (0, 10)
    outlines = read_outlines(write_geojson(tmp_path / "o.geojson", polygon("a", *square), polygon("a", *square)))
    assert measure_coverage(np.array([[0.0, 0.0, 20.0]]), outlines["a"]) == pytest.approx([0.25])


def test_an_outline_that_crosses_itself_is_repaired(tmp_path: Path) -> None:
    bow_tie = polygon("a", (0, 0), (10, 10), (10, 0), (0, 10))
    outlines = read_outlines(write_geojson(tmp_path / "o.geojson", bow_tie))
    assert shapely.area(outlines["a"]) == pytest.approx(50)


def test_no_outline_covers_nothing() -> None:
    assert measure_coverage(np.array([[0.0, 0.0, 20.0]]), None).tolist() == [0]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"features": [{}]}', '{"features": [{"properties": {"slide_id": "a"}, "geometry": 3}]}']
)
def test_a_file_that_is_not_geojson_is_named_in_the_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"other\.json.*is not a GeoJSON file of outlines.*slide_id"):
        read_outlines(str(path))


def asap(*annotations: tuple[str, list[tuple[float, float]]], comma: bool = False) -> bytes:
    def point(order: int, x: float, y: float) -> str:
        text = f'<Coordinate Order="{order}" X="{x:.3f}" Y="{y:.3f}" />'
        return text.replace(".", ",") if comma else text

    parts = [
        f'<Annotation Name="a" Type="Polygon" PartOfGroup="{group}"><Coordinates>'
        + "".join(point(n, *xy) for n, xy in enumerate(ring))
        + "</Coordinates></Annotation>"
        for group, ring in annotations
    ]
    return f"<ASAP_Annotations><Annotations>{''.join(parts)}</Annotations></ASAP_Annotations>".encode()


SQUARE = [(0.0, 0.0), (100.0, 0.0), (100.0, 100.0), (0.0, 100.0)]
INNER = [(25.0, 25.0), (75.0, 25.0), (75.0, 75.0), (25.0, 75.0)]


@pytest.mark.parametrize("group", ["_2", "Exclusion", "normal"])
@pytest.mark.parametrize("comma", [False, True])
def test_normal_tissue_is_cut_out_of_asap_outlines(group: str, comma: bool) -> None:
    outline = read_asap(asap(("_0", SQUARE), (group, INNER), comma=comma), "x.xml")
    assert shapely.area(outline) == pytest.approx(100 * 100 - 50 * 50)


def test_asap_files_of_a_folder_are_named_by_slide(tmp_path: Path) -> None:
    (tmp_path / "tumor_001.xml").write_bytes(asap(("metastases", SQUARE)))
    (tmp_path / "normal_001.xml").write_bytes(asap(("normal", SQUARE)))
    (tmp_path / "readme.txt").write_text("x")
    outlines = read_outlines(str(tmp_path))
    assert list(outlines) == ["tumor_001"]
    assert shapely.area(outlines["tumor_001"]) == pytest.approx(10_000)


def test_an_asap_file_whose_size_exceeds_the_limit_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "slide.xml", "wb") as file:
        file.truncate((64 << 20) + 1)  # sparse: it takes no disk
    with pytest.raises(UsageError, match=r"slide\.xml"):
        read_outlines(str(tmp_path))


def test_a_real_asap_file_is_read(test_data: Path) -> None:
    path = test_data / "annotations" / "he-two-pieces.asap.xml"
    outline = read_asap(path.read_bytes(), str(path))
    left, top, right, bottom = outline.bounds  # of a slide of 1,472 x 690 px
    assert 0 < left < right < 1472
    assert 0 < top < bottom < 690


@pytest.mark.parametrize("data", [b"no xml", b'<a><Annotation><Coordinate Order="0" X="1" /></Annotation></a>'])
def test_a_file_that_is_not_asap_xml_is_named_in_the_error(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"x\.xml: is not a file of ASAP annotations"):
        read_asap(data, "x.xml")
