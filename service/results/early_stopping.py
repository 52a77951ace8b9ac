"""When a slide's running probability has settled, and what stopping there saves and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magnet.metrics import auroc

STEADY = 4
"""Last patches over which the probability must have moved no more than EPS. As
many are read at once; see `magnet.zoom`."""


def settled(running: Sequence[float], eps: float) -> bool:
    """Whether a running probability has moved no more than `eps` over its last `STEADY` patches."""
    return len(running) >= STEADY and float(np.ptp(running[-STEADY:])) <= eps


def _end(running: Sequence[float], eps: float) -> int:
    """After how many patches a slide would have ended, asked every `STEADY` patches."""
    stops = (seen for seen in range(STEADY, len(running), STEADY) if settled(running[:seen], eps))
    return next(stops, len(running))


@dataclass(frozen=True, slots=True)
class Stopped:
    """A cohort that was scored whole, as if it had been stopped early."""

    eps: float
    patches: float
    """Share of the last patches that would have been read."""
    changed_calls: int
    """Slides whose call would have been another."""
    auroc: float | None
    """With labels of both kinds."""


def stopped(running: Sequence[Sequence[float]], labels: Sequence[int | None], threshold: float, eps: float) -> Stopped:
    """What `--stop-when-settled EPS` would have done.

    Args:
        running: of each scored slide, complete.
        labels: None where unknown.
        threshold: of the call.
        eps: as of the option.
    """
    ends = [_end(one, eps) for one in running]
    early = np.array([one[end - 1] for one, end in zip(running, ends, strict=True)])
    whole = np.array([one[-1] for one in running])
    known = [n for n, label in enumerate(labels) if label is not None]
    label = np.array([labels[n] for n in known], dtype=np.int64)
    return Stopped(
        eps=eps,
        patches=sum(ends) / sum(map(len, running)),
        changed_calls=int(((early >= threshold) != (whole >= threshold)).sum()),
        auroc=auroc(label, early[known]) if 0 < label.sum() < len(label) else None,
    )
