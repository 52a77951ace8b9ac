"""Heads: from patch features to the slide's logit, and to the running logit after each patch.

Shape letters: B slides, N patches in order, D features.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

FC_SIZES = (512, 256)
"""Units of the fully connected layers after the GRU. Source: the paper, section 3.2."""


class SlideLogits(NamedTuple):
    """The prediction of a head for B slides."""

    running_BN: Tensor
    """Slide logit from patches 0 to n; the last one is the slide's logit."""
    patch_BN: Tensor | None
    """Logit of each patch by itself; None for a head that has no such logit."""


class RecurrentHead(nn.Module):
    """A GRU over the patches, then a small fully connected network on each of its outputs.

    Args:
        in_features: D.
        hidden: units of the GRU; the paper does not give them.

    Source: the paper, section 3.2.
    """

    def __init__(self, in_features: int, *, hidden: int = 512) -> None:
        super().__init__()
        self.gru = nn.GRU(in_features, hidden, batch_first=True)
        sizes = [hidden, *FC_SIZES]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        self.fc = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, feature_BND: Tensor) -> SlideLogits:
        """Return the logit of every prefix of the patches; the GRU gives all of them in one pass."""
        state_BND, _ = self.gru(feature_BND)
        return SlideLogits(self.fc(state_BND).squeeze(-1), None)


class EvidenceHead(nn.Module):
    """One logit per patch, pooled by log-mean-exp: the most suspicious patches decide the slide's logit.

    Args:
        in_features: D.
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.patch = nn.Linear(in_features, 1)

    def forward(self, feature_BND: Tensor) -> SlideLogits:
        """Return the pooled logit of every prefix of the patches, and the logit of each patch; both float32."""
        # The pool sums exponentials: in half precision small patches would vanish next to a large one.
        patch_BN = self.patch(feature_BND).squeeze(-1).float()
        return SlideLogits(running_log_mean_exp(patch_BN), patch_BN)


class MeanHead(nn.Module):
    """A logit from the mean of a slide's features, for the auxiliary classifiers.

    Source: the paper, section 3.3; it does not say how several views become one prediction.
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_features, 1)

    def forward(self, feature_BND: Tensor) -> Tensor:
        """Return logits (B,)."""
        return self.fc(feature_BND.mean(dim=1)).squeeze(-1)


def running_log_mean_exp(logit_BN: Tensor) -> Tensor:
    """Return the logarithm of the mean of the exponentials of every prefix.

    Returns:
        Shape (B, N); each entry is between the mean and the maximum of its prefix.
    """
    count_N = torch.arange(1, logit_BN.shape[-1] + 1, dtype=logit_BN.dtype, device=logit_BN.device)
    return logit_BN.logcumsumexp(dim=-1) - count_N.log()
