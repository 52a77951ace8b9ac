"""The free-response ROC against curves computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from service.results.froc import RATES, Detections, compute_froc


def slide(num_lesions: int, *detections: tuple[float, int]) -> Detections:
    scores, lesion = zip(*detections, strict=True) if detections else ((), ())
    return Detections(np.array(scores, dtype=np.float64), np.array(lesion, dtype=np.int64), num_lesions)


def test_a_curve_computed_by_hand() -> None:
    slides = [
        slide(2, (0.9, 0), (0.8, -1), (0.3, 1), (0.95, 0)),
        slide(1, (0.5, -1), (0.4, 0)),
        slide(0, (0.7, -1), (0.2, -1)),
        slide(1),
    ]
    # false positives .8 .7 .5 .2 on four slides; lesions found at .95, .4, .3, and one never
    curve = compute_froc(slides)
    # 1, 2, 4, 8, 16, 32 false positives are allowed: thresholds above .7, above .5, then any
    assert curve.sensitivity == (0.25, 0.25, 0.75, 0.75, 0.75, 0.75)
    assert curve.score == pytest.approx((2 * 0.25 + 4 * 0.75) / 6)
    assert (curve.num_slides, curve.num_lesions) == (4, 4)


def test_all_lesions_found_without_a_false_positive_score_1() -> None:
    assert compute_froc([slide(1, (0.1, 0)), slide(2, (0.2, 0), (0.3, 1))]).score == 1


def test_a_false_positive_with_the_same_score_as_a_lesion_comes_first() -> None:
    false_positives = [(0.5, -1)] * 9
    assert compute_froc([slide(1, (0.5, 0), *false_positives)]).sensitivity == (0,) * len(RATES)


def test_a_cohort_without_lesions_is_an_error() -> None:
    with pytest.raises(ValueError, match="no slide has a lesion"):
        compute_froc([slide(0, (0.5, -1))])
