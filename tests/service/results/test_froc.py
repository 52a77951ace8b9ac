"""The free-response ROC, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from service.results.froc import RATES, Detections, froc


def slide(num_lesions: int, *found: tuple[float, int]) -> Detections:
    scores, lesion = zip(*found, strict=True) if found else ((), ())
    return Detections(np.array(scores, dtype=np.float64), np.array(lesion, dtype=np.int64), num_lesions)


def test_a_curve_counted_by_hand() -> None:
    slides = [
        slide(2, (0.9, 0), (0.8, -1), (0.3, 1), (0.95, 0)),
        slide(1, (0.5, -1), (0.4, 0)),
        slide(0, (0.7, -1), (0.2, -1)),
        slide(1),
    ]
    # alarms .8 .7 .5 .2 over four slides; lesions found at .95, .4, .3, and one never
    curve = froc(slides)
    # at most 1, 2, 4, 8, 16, 32 alarms: above .7, .5, then all
    assert curve.sensitivity == (0.25, 0.25, 0.75, 0.75, 0.75, 0.75)
    assert curve.score == pytest.approx((2 * 0.25 + 4 * 0.75) / 6)
    assert (curve.num_slides, curve.num_lesions) == (4, 4)


def test_everything_found_without_an_alarm_is_perfect() -> None:
    assert froc([slide(1, (0.1, 0)), slide(2, (0.2, 0), (0.3, 1))]).score == 1


def test_an_alarm_as_sure_as_a_find_stands_before_it() -> None:
    alarms = [(0.5, -1)] * 9
    assert froc([slide(1, (0.5, 0), *alarms)]).sensitivity == (0,) * len(RATES)


def test_nothing_to_find_is_an_error() -> None:
    with pytest.raises(ValueError, match="no lesion"):
        froc([slide(0, (0.5, -1))])
