"""Agreement of regions with outlines of lesions, against figures computed by hand."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
import shapely

from service.results.localisation import measure_localisation
from service.results.scores import SCHEMA
from tests.service.results.score_row import make_scored_row, make_unscored_row


def table(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def test_hits_coverage_and_froc_of_a_cohort() -> None:
    # patches at 100..200 and 600..700, layer 1 at 50..350 and 500..800
    two = shapely.union_all([shapely.box(100, 100, 200, 300), shapely.box(900, 0, 1000, 50)])
    outlines = {"hit": two, "missed": shapely.box(0, 700, 100, 800), "refused": two}
    rows = table(
        make_scored_row("hit", 0.9, 1),
        make_scored_row("missed", 0.8, 1),
        make_scored_row("without lesions", 0.1, 0),
        make_scored_row("unknown", 0.7),
        make_unscored_row("refused", "refused", "blank"),
    )
    result = measure_localisation(rows, outlines)
    assert result is not None
    assert (result.num_slides, result.num_slides_hit) == (2, 1)
    assert result.layers[1].share == pytest.approx((100 * 100 / (100 * 200 + 100 * 50) + 0) / 2)
    assert result.layers[0].share == pytest.approx((100 * 200 / (100 * 200 + 100 * 50) + 0) / 2)
    assert result.layers[1].um_per_px == pytest.approx(2 * 0.5)
    # three lesions on three slides; false positives .9 (the other patch of "hit"), .8 twice, .1 twice
    assert (result.froc.num_slides, result.froc.num_lesions) == (3, 3)
    assert result.froc.sensitivity == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3])
    written = json.loads(result.to_json())
    assert written["hit_rate"] == 0.5
    assert written["froc"]["sensitivity"]["8"] == pytest.approx(1 / 3)


def test_a_patch_is_ranked_by_its_own_probability_if_it_has_one() -> None:
    row = make_scored_row("hit", 0.9, 1)
    for region, probability in zip(row["regions"][-2:], (0.95, 0.2), strict=True):
        region["patch_probability"] = probability
    result = measure_localisation(table(row), {"hit": shapely.box(100, 100, 200, 200)})
    assert result is not None
    assert result.froc.sensitivity == (1,) * 6


def test_a_cohort_without_outlines_of_scored_slides_has_no_result() -> None:
    assert measure_localisation(table(make_scored_row("a", 0.9)), {"b": shapely.box(0, 0, 1, 1)}) is None
