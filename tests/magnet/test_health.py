"""Statistics of the positions of regions, and the layers that count as collapsed."""

from __future__ import annotations

import numpy as np
import pytest

from magnet.health import ViewedRegions, describe_collapses, measure_health, measure_movement
from magnet.regions import ROOT


def regions_of(*children: tuple[float, float, float], tissue: float = 0.5) -> ViewedRegions:
    """Return the root and one layer of regions below it."""
    regions = np.array(children)
    return ViewedRegions(
        (ROOT[None], regions), (np.array([0.3], np.float32), np.full(len(regions), tissue, np.float32))
    )


def test_overlap_is_the_shared_area_divided_by_that_of_the_smaller_region() -> None:
    # one region of side 1 at the origin, one of side 0.5 whose left half is inside the first
    overlapping = measure_health([regions_of((0.5, 0, 0), (0.25, 0.5, 0))], (2,), scale_min=0.1)
    assert overlapping["layer1_overlap"] == pytest.approx(0.5)
    apart = measure_health([regions_of((0.2, -0.5, 0), (0.2, 0.5, 0))], (2,), scale_min=0.1)
    assert apart["layer1_overlap"] == 0


def test_floor_scale_and_tissue_are_shares_of_the_regions() -> None:
    figures = measure_health([regions_of((0.1, 0, 0), (0.3, 0, 0), tissue=0.02)], (2,), scale_min=0.1)
    assert figures["layer1_floor"] == 0.5
    assert figures["layer1_scale"] == pytest.approx(0.2)
    assert figures["layer1_tissue"] == pytest.approx(0.02)
    assert figures["layer1_empty"] == 1


def test_floor_and_spread_of_a_deeper_layer_are_relative_to_its_parents() -> None:
    parent = np.array([[0.5, 0.25, 0.0]])

    def slide(x: float) -> ViewedRegions:
        child = np.array([[0.05, 0.25 + 0.5 * x, 0.0]])  # a tenth of the parent, x half-sides to its right
        return ViewedRegions((ROOT[None], parent, child), tuple(np.ones(1, np.float32) for _ in range(3)))

    figures = measure_health([slide(-0.4), slide(0.4)], (1, 1), scale_min=0.1)
    assert figures["layer2_floor"] == 1
    assert figures["layer2_spread"] == pytest.approx(0.2)  # 0.4 in x, nothing in y
    assert figures["layer1_spread"] == 0
    assert "layer1_overlap" not in figures  # one child has no sibling


def test_movement_is_the_mean_distance_of_centres_over_the_common_slides() -> None:
    before = {"a": regions_of((0.1, 0, 0), (0.1, 0, 0)), "gone": regions_of((0.1, 0, 0), (0.1, 0, 0))}
    after = {"a": regions_of((0.1, 0.3, 0.4), (0.1, 0, 0)), "new": regions_of((0.1, 0.9, 0), (0.1, 0, 0))}
    assert measure_movement(before, after) == {"layer1_moved": pytest.approx(0.25)}
    assert measure_movement({}, after) == {}


@pytest.mark.parametrize(
    ("slides", "phrase"),
    [
        ([regions_of((0.2, 0, 0), (0.2, 0.01, 0)), regions_of((0.2, 0.9, 0), (0.2, 0.9, 0.01))], "siblings"),
        ([regions_of((0.2, -0.5, 0), (0.2, 0.5, 0)), regions_of((0.2, -0.5, 0), (0.2, 0.5, 0))], "same place"),
        (
            [regions_of((0.2, -0.5, 0), (0.2, 0.5, 0), tissue=0), regions_of((0.2, 0.5, 0), (0.2, 0, 0), tissue=0)],
            "no tissue",
        ),
    ],
)
def test_a_collapsed_layer_is_reported(slides: list[ViewedRegions], phrase: str) -> None:
    [sentence] = describe_collapses(measure_health(slides, (2,), scale_min=0.1), (2,))
    assert sentence.startswith("layer 1:")
    assert phrase in sentence


def test_a_healthy_layer_is_not_reported() -> None:
    slides = [regions_of((0.2, -0.5, 0), (0.2, 0.5, 0)), regions_of((0.2, 0.3, 0.5), (0.2, -0.2, -0.6))]
    assert describe_collapses(measure_health(slides, (2,), scale_min=0.1), (2,)) == []
