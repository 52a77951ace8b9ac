"""Losses against their formulas in numpy float64."""

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


def test_cross_entropy_of_each_slide() -> None:
    np.testing.assert_allclose(cross_entropy(LATE, LABEL), entropy(LATE, LABEL), atol=1e-14)
    torch.testing.assert_close(
        cross_entropy(torch.tensor([200.0, -200.0]), torch.tensor([0, 0])), torch.tensor([200.0, 0.0])
    )


def test_half_precision_logits_are_judged_in_float32() -> None:
    loss = cross_entropy(LATE.bfloat16(), LABEL)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss, entropy(LATE, LABEL), atol=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_paradoxical_loss_is_the_excess_of_the_later_entropy(margin: float) -> None:
    expected = np.maximum(entropy(LATE, LABEL) - entropy(EARLY, LABEL) + margin, 0)
    np.testing.assert_allclose(paradoxical(LATE, EARLY, LABEL, margin=margin), expected, atol=1e-14)
    # slide 0 is better later, 1 worse, 2 the same, 3 worse
    assert (paradoxical(LATE, EARLY, LABEL) > 0).tolist() == [False, True, False, True]


def test_paradoxical_loss_on_probabilities() -> None:
    def p_true(logit: torch.Tensor) -> Any:
        p = 1 / (1 + np.exp(-logit.numpy()))
        return np.where(LABEL.numpy() == 1, p, 1 - p)

    expected = np.maximum(p_true(EARLY) - p_true(LATE) + 0.1, 0)
    found = paradoxical(LATE, EARLY, LABEL, margin=0.1, form="probability")
    np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize("form", ["entropy", "probability"])
def test_the_earlier_prediction_gets_no_gradient_unless_asked(form: Any) -> None:
    for stop_gradient in (True, False):
        late, early = LATE.clone().requires_grad_(), EARLY.clone().requires_grad_()
        loss = paradoxical(late, early, LABEL, form=form, stop_gradient=stop_gradient)
        grads = torch.autograd.grad(loss.sum(), (late, early), allow_unused=True)
        assert grads[0] is not None
        assert (grads[0] != 0).tolist() == [False, True, False, True]
        assert (grads[1] is None) is stop_gradient


def test_gradient_by_finite_differences() -> None:
    late, early = LATE.clone().requires_grad_(), EARLY.clone().requires_grad_()
    for form in ("entropy", "probability"):
        assert torch.autograd.gradcheck(
            lambda a, b, form=form: paradoxical(a, b, LABEL, margin=0.01, form=form, stop_gradient=False), (late, early)
        )


def test_unknown_forms_are_named() -> None:
    with pytest.raises(ValueError, match="'rank': must be"):
        paradoxical(LATE, EARLY, LABEL, form="rank")  # type: ignore[arg-type]
