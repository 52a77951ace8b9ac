"""When a probability counts as settled, and what early stopping would have saved."""

from __future__ import annotations

import pytest

from magnet.zoom import PATCHES_PER_READ
from service.results.early_stopping import WINDOW_PATCHES, has_settled, simulate_early_stopping


def test_only_the_last_patches_decide_whether_a_probability_has_settled() -> None:
    assert has_settled([0.9, 0.1, 0.50, 0.51, 0.52, 0.50], 0.021)
    assert not has_settled([0.9, 0.1, 0.50, 0.51, 0.53, 0.50], 0.021)
    assert not has_settled([0.5, 0.5, 0.5], 1)


def test_the_simulation_checks_as_often_as_a_zoom() -> None:
    assert WINDOW_PATCHES == PATCHES_PER_READ


def test_savings_and_changed_calls_counted_by_hand() -> None:
    steady_then_high = [0.2] * 4 + [0.9] * 4
    restless = [0.1, 0.9] * 4
    falling = [0.6, 0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    result = simulate_early_stopping([steady_then_high, restless, falling], [1, 1, 0], 0.5, 0.05)
    assert result.patch_share == pytest.approx((4 + 8 + 8) / (8 + 8 + 10))
    assert result.num_changed_calls == 1
    assert result.auroc == 1.0  # probabilities .2 and .9 against .1
    one_label = simulate_early_stopping([steady_then_high, restless, falling], [1, None, None], 0.5, 0.0)
    assert one_label.auroc is None
