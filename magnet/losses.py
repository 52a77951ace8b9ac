"""Losses on slide logits, one value per slide, so that callers can weight and average them.

Shape letters: B slides. Labels are 0 or 1, of any dtype.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """Return the binary cross-entropy of each slide.

    Returns:
        Shape (B,), in nats, float32 (float64 for float64 logits).
    """
    logit_B = logit_B if logit_B.dtype.itemsize == 8 else logit_B.float()
    return F.binary_cross_entropy_with_logits(logit_B, label_B.to(logit_B.dtype), reduction="none")


def paradoxical(late_logit_B: Tensor, early_logit_B: Tensor, label_B: Tensor, *, margin: float = 0.0) -> Tensor:
    """Return by how much a late layer's views predict worse than an early layer's.

    Args:
        late_logit_B: logits from the late layer's views.
        early_logit_B: logits from the early layer's views; they receive no gradient.
        label_B: labels of the slides.
        margin: by how much the late cross-entropy must be lower, in nats.

    Returns:
        Shape (B,), in nats, 0 where the late prediction is better by the margin.

    Source: the paper, section 3.3 (the premise); its formula is in Maksoud et al., CVPR 2020, arXiv 2003.05080, which
    this hinge follows in intent only.
    """
    # With a gradient to the early logits the loss would also fall by making the early prediction worse.
    lack_B = cross_entropy(late_logit_B, label_B) - cross_entropy(early_logit_B.detach(), label_B)
    return F.relu(lack_B + margin)  # no gradient where both predict equally well
