"""Losses on slide logits, one value per slide so that callers weigh and average.

Shapes: ``B`` slides. Labels are 0 or 1, any dtype.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

ParadoxicalForm = Literal["entropy", "probability"]


def cross_entropy(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """Binary cross-entropy of each slide in nats; (B,), float32 (float64 for float64)."""
    logit_B = _exact(logit_B)
    return F.binary_cross_entropy_with_logits(logit_B, label_B.to(logit_B.dtype), reduction="none")


def paradoxical(
    late_logit_B: Tensor,
    early_logit_B: Tensor,
    label_B: Tensor,
    *,
    margin: float = 0.0,
    form: ParadoxicalForm = "entropy",
    stop_gradient: bool = True,
) -> Tensor:
    """What a later layer's views lack to predict as well as an earlier layer's; (B,), 0 where they do.

    Args:
        late_logit_B: logits from the later layer's views.
        early_logit_B: logits from the earlier layer's.
        label_B: the slides' labels.
        margin: by how much the later one must be better, in nats or in probability.
        form: "entropy" compares cross-entropies, "probability" the probabilities given to the true class.
        stop_gradient: keep the gradient from the earlier logits. Without it the loss also falls by making the earlier
            prediction worse.

    Source: the paper, section 3.3 (the premise); its formula is in Maksoud et al., CVPR 2020, arXiv 2003.05080, which
    this hinge follows in intent only.
    """
    early = early_logit_B.detach() if stop_gradient else early_logit_B
    if form == "entropy":
        lack = cross_entropy(late_logit_B, label_B) - cross_entropy(early, label_B)
    elif form == "probability":
        sign = 2 * label_B.to(_exact(late_logit_B).dtype) - 1
        lack = (sign * _exact(early)).sigmoid() - (sign * _exact(late_logit_B)).sigmoid()
    else:
        raise ValueError(f"form {form!r}: must be 'entropy' or 'probability'")
    return F.relu(lack + margin)  # no gradient where both predict equally well


def _exact(logit_B: Tensor) -> Tensor:
    return logit_B if logit_B.dtype.itemsize == 8 else logit_B.float()
