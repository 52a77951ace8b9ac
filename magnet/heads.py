"""From patch features to the slide's logit, and to the running logit after each patch.

Shapes: ``B`` slides, ``N`` patches in order, ``D`` features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn


class RecurrentHead(nn.Module):
    """GRU over the patches, then a small fully connected network on each of its outputs.

    Args:
        in_features: D.
        hidden: size of the GRU's state; the paper does not say.
        fc: sizes of the fully connected layers.

    Source: the paper, section 3.2.
    """

    def __init__(self, in_features: int, *, hidden: int = 512, fc: Sequence[int] = (512, 256)) -> None:
        super().__init__()
        self.gru = nn.GRU(in_features, hidden, batch_first=True)
        sizes = [hidden, *fc]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        self.fc = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, feature_BND: Tensor) -> Tensor:
        """Logits (B, N): the n-th has seen patches 0 to n, the last one is the slide's."""
        state_BND, _ = self.gru(feature_BND)
        return self.fc(state_BND).squeeze(-1)


class Evidence(NamedTuple):
    """What `EvidenceHead` says of a slide."""

    slide: Tensor
    """(B,) the slide's logit."""
    patch: Tensor
    """(B, N) logit of each patch by itself."""
    running: Tensor
    """(B, N) slide logit from patches 0 to n."""


class EvidenceHead(nn.Module):
    """A logit for each patch, pooled by log-mean-exp: a slide is as suspicious as its most suspicious patches.

    Args:
        in_features: D.
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.patch = nn.Linear(in_features, 1)

    def forward(self, feature_BND: Tensor) -> Evidence:
        """Logits of a slide's patches, their pool, and the pool of each prefix."""
        patch_BN = self.patch(feature_BND).squeeze(-1).float()
        running_BN = running_log_mean_exp(patch_BN)
        return Evidence(slide=running_BN[:, -1], patch=patch_BN, running=running_BN)


class MeanHead(nn.Module):
    """A logit from the mean of a slide's features: the auxiliary classifiers'.

    Source: the paper, section 3.3; it does not say how several images become one prediction.
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_features, 1)

    def forward(self, feature_BND: Tensor) -> Tensor:
        """Logits (B,)."""
        return self.fc(feature_BND.mean(dim=1)).squeeze(-1)


def running_log_mean_exp(logit_BN: Tensor) -> Tensor:
    """Logarithm of the mean of the exponentials of every prefix: between its mean and its maximum; (B, N)."""
    count_N = torch.arange(1, logit_BN.shape[-1] + 1, dtype=logit_BN.dtype, device=logit_BN.device)
    return logit_BN.logcumsumexp(dim=-1) - count_N.log()
