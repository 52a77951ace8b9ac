"""Curves and confusion matrix, compared with scikit-learn."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, confusion_matrix, precision_recall_curve, roc_auc_score, roc_curve

from ray_jobs.training.record.figures import compute_curves, count_confusion, draw_validation_figures

SCORES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10)), min_size=2, max_size=40).filter(
    lambda rows: 0 < sum(label for label, _ in rows) < len(rows)
)


@given(SCORES)
def test_curves_agree_with_scikit_learn(rows: list[tuple[int, int]]) -> None:
    labels, probabilities = [label for label, _ in rows], [p / 10 for _, p in rows]
    rates = compute_curves(labels, probabilities)
    false_rate, true_rate, _ = roc_curve(labels, probabilities, drop_intermediate=False)
    np.testing.assert_allclose(rates.false_rate, false_rate)
    np.testing.assert_allclose(rates.recall, true_rate)
    assert auc(rates.false_rate, rates.recall) == pytest.approx(roc_auc_score(labels, probabilities))
    precision, recall, _ = precision_recall_curve(labels, probabilities)
    np.testing.assert_allclose(rates.precision, precision[::-1])
    np.testing.assert_allclose(rates.recall, recall[::-1])


@given(SCORES, st.integers(0, 11))
def test_the_confusion_matrix_agrees_with_scikit_learn(rows: list[tuple[int, int]], cut: int) -> None:
    labels, probabilities = np.array([label for label, _ in rows]), np.array([p / 10 for _, p in rows])
    called = probabilities >= cut / 10
    np.testing.assert_array_equal(count_confusion(labels, probabilities, cut / 10), confusion_matrix(labels, called))


def test_all_figures_are_drawn_and_without_two_classes_only_the_confusion_matrix() -> None:
    drawn = draw_validation_figures([0, 1, 1], [0.1, 0.6, 0.4], 0.5)
    assert set(drawn) == {"roc.png", "precision_recall.png", "confusion.png"}
    for figure in drawn.values():
        png = io.BytesIO()
        figure.savefig(png)
        assert png.getvalue().startswith(b"\x89PNG")
    assert set(draw_validation_figures([1, 1], [0.6, 0.4], 0.5)) == {"confusion.png"}
