"""When a probability has settled, and what ending there would have saved."""

from __future__ import annotations

import pytest

from magnet.zoom import AT_ONCE
from service.results.early_stopping import STEADY, settled, stopped


def test_settled_looks_at_the_last_patches_alone() -> None:
    assert settled([0.9, 0.1, 0.50, 0.51, 0.52, 0.50], 0.021)
    assert not settled([0.9, 0.1, 0.50, 0.51, 0.53, 0.50], 0.021)
    assert not settled([0.5, 0.5, 0.5], 1)


def test_it_is_asked_as_often_as_the_zoom_asks() -> None:
    assert STEADY == AT_ONCE


def test_stopping_a_cohort_counted_by_hand() -> None:
    steady_then_high = [0.2] * 4 + [0.9] * 4
    restless = [0.1, 0.9] * 4
    falling = [0.6, 0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    found = stopped([steady_then_high, restless, falling], [1, 1, 0], 0.5, 0.05)
    assert found.patches == pytest.approx((4 + 8 + 8) / (8 + 8 + 10))
    assert found.changed_calls == 1
    assert found.auroc == 1.0  # .2 and .9 above .1
    never = stopped([steady_then_high, restless, falling], [1, None, None], 0.5, 0.0)
    assert never.auroc is None
