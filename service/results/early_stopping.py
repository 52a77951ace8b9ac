"""Early stopping of a slide's zoom once its running probability has settled: the rule, and what it would have saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magnet.metrics import auroc

WINDOW_PATCHES = 4
"""Number of last patches over which the probability must be steady. A zoom reads as many at once before it asks
whether it may end (`magnet.zoom`), so that the rule is applied each time to patches that are all new."""


def has_settled(running: Sequence[float], eps: float) -> bool:
    """Return whether a running probability has moved no more than `eps` over its last `WINDOW_PATCHES` patches."""
    return len(running) >= WINDOW_PATCHES and float(np.ptp(running[-WINDOW_PATCHES:])) <= eps


def _count_patches_read(running: Sequence[float], eps: float) -> int:
    """Return after how many patches a slide would have ended, if the rule had been applied as in a real zoom."""
    # A slide whose last patches were all read has nothing left to save, so that the full length is no candidate.
    ends = (n for n in range(WINDOW_PATCHES, len(running), WINDOW_PATCHES) if has_settled(running[:n], eps))
    return next(ends, len(running))


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """Savings and costs of early stopping on a cohort whose slides were all read completely."""

    eps: float
    """Largest movement of a probability that counts as settled."""
    patch_share: float
    """Share of the last patches that would have been read, 0 to 1."""
    num_changed_calls: int
    """Number of slides whose call would have been different."""
    auroc: float | None
    """AUROC that the cohort would have had; None unless both labels occur."""


def simulate_early_stopping(
    running: Sequence[Sequence[float]], labels: Sequence[int | None], threshold: float, eps: float
) -> EarlyStopping:
    """Compute what ``--stop-when-settled EPS`` would have saved and changed.

    Args:
        running: complete running probabilities of each scored slide.
        labels: label of each slide, None where unknown.
        threshold: probability from which the call is positive.
        eps: value of the option.
    """
    ends = [_count_patches_read(probabilities, eps) for probabilities in running]
    early = np.array([probabilities[end - 1] for probabilities, end in zip(running, ends, strict=True)])
    complete = np.array([probabilities[-1] for probabilities in running])
    labelled = [n for n, label in enumerate(labels) if label is not None]
    known_labels = np.array([labels[n] for n in labelled], dtype=np.int64)
    has_both = 0 < known_labels.sum() < len(known_labels)
    return EarlyStopping(
        eps=eps,
        patch_share=sum(ends) / sum(map(len, running)),
        num_changed_calls=int(((early >= threshold) != (complete >= threshold)).sum()),
        auroc=auroc(known_labels, early[labelled]) if has_both else None,
    )
