"""Losses compared with their formulas in numpy float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from magnet.losses import cross_entropy, paradoxical

F64 = torch.float64
LATE = torch.tensor([2.0, -1.0, 0.5, -3.0], dtype=F64)
EARLY = torch.tensor([1.0, 1.0, 0.5, -4.0], dtype=F64)
LABEL = torch.tensor([1, 1, 0, 0])


def entropy(logit: Any, label: Any) -> Any:
    p = 1 / (1 + np.exp(-np.asarray(logit)))
    return -(np.asarray(label) * np.log(p) + (1 - np.asarray(label)) * np.log(1 - p))


def test_cross_entropy_equals_its_formula_for_each_slide() -> None:
    np.testing.assert_allclose(cross_entropy(LATE, LABEL), entropy(LATE, LABEL), atol=1e-14)
    torch.testing.assert_close(
        cross_entropy(torch.tensor([200.0, -200.0]), torch.tensor([0, 0])), torch.tensor([200.0, 0.0])
    )


def test_half_precision_logits_are_compared_in_float32() -> None:
    loss = cross_entropy(LATE.bfloat16(), LABEL)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss, entropy(LATE, LABEL), atol=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_the_paradoxical_loss_is_the_excess_of_the_late_entropy(margin: float) -> None:
    expected = np.maximum(entropy(LATE, LABEL) - entropy(EARLY, LABEL) + margin, 0)
    np.testing.assert_allclose(paradoxical(LATE, EARLY, LABEL, margin=margin), expected, atol=1e-14)
    # the late prediction is better on slide 0, worse on 1, equal on 2 and worse on 3
    assert (paradoxical(LATE, EARLY, LABEL) > 0).tolist() == [False, True, False, True]


def test_the_early_prediction_receives_no_gradient() -> None:
    late, early = LATE.clone().requires_grad_(), EARLY.clone().requires_grad_()
    by_late, by_early = torch.autograd.grad(paradoxical(late, early, LABEL).sum(), (late, early), allow_unused=True)
    assert (by_late != 0).tolist() == [False, True, False, True]
    assert by_early is None


def test_the_gradient_to_the_late_prediction_matches_finite_differences() -> None:
    late = LATE.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda logit: paradoxical(logit, EARLY, LABEL, margin=0.01), late)
