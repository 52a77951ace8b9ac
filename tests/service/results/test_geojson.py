"""The GeoJSON for QuPath, read back."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from shapely.geometry import shape

from service.results.geojson import to_geojson
from service.results.pictures import LAYER_COLOURS
from tests.service.results.score_row import make_scored_row


def read_back(row: dict[str, Any]) -> list[dict[str, Any]]:
    collection = json.loads(to_geojson(row))
    assert collection["type"] == "FeatureCollection"
    assert collection["research_use_only"] is True
    return collection["features"]


def test_polygons_equal_the_regions() -> None:
    row = make_scored_row("s", 0.75)
    features = read_back(row)
    regions = row["regions"][1:]  # the root is the slide
    assert len(features) == len(regions)
    for feature, region in zip(features, regions, strict=True):
        polygon = shape(feature["geometry"])
        x, y, side = (region[name] for name in ("x_l0", "y_l0", "side_l0"))
        assert polygon.is_valid
        assert polygon.bounds == (x, y, x + side, y + side)
        assert polygon.area == pytest.approx(side**2)


def test_objects_have_names_classes_colours_and_measurements() -> None:
    features = read_back(make_scored_row("s", 0.75))
    properties = [feature["properties"] for feature in features]
    assert [p["name"] for p in properties] == ["layer 1, region 1", "layer 1, region 2", "patch 1", "patch 2"]
    assert {p["objectType"] for p in properties} == {"annotation"}
    assert properties[3]["classification"]["name"] == "MagNet layer 2"
    red, green, blue = properties[3]["classification"]["color"]
    assert f"#{red:02x}{green:02x}{blue:02x}" == LAYER_COLOURS[2]
    assert properties[3]["measurements"]["Probability after this patch"] == 0.75
    assert properties[0]["measurements"]["Map value"] == 0.4
    assert "Probability of this patch" not in properties[3]["measurements"]  # null is not a measurement


def test_ids_are_uuids_that_do_not_change_between_runs() -> None:
    first, again, other = (read_back(make_scored_row(name, 0.5)) for name in ("s", "s", "t"))
    ids = [uuid.UUID(feature["id"]) for feature in first]
    assert len(set(ids)) == 4
    assert [feature["id"] for feature in again] == list(map(str, ids))
    assert not {feature["id"] for feature in other} & set(map(str, ids))
