"""Area under the ROC curve with a confidence interval, for all positives and by stratum. Needs numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

ALL = "all"
"""Group of all positives."""
MACRO_MICRO = "macro+micro"
"""Group that the paper reports in addition to all positives."""


@dataclass(frozen=True, slots=True)
class Auroc:
    """Area under the ROC curve of one group of positives against all negatives."""

    auroc: float
    """Area under the ROC curve, 0 to 1."""
    low: float
    """Lower end of the confidence interval."""
    high: float
    """Upper end of the confidence interval."""
    num_positive: int
    """Number of positive slides in the group."""
    num_negative: int
    """Number of negative slides."""


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Compute the probability that a positive scores higher than a negative; a tie counts half.

    Args:
        labels: 0 or 1, shape (N,).
        scores: finite, higher means more positive, shape (N,).

    Returns:
        0 to 1; 0.5 where all scores are equal.

    Raises:
        ValueError: a class is missing, or labels or scores have a wrong shape or values.
    """
    positive, negative = _by_label(labels, scores)
    return float(_shares_below(positive, negative).mean())


def auroc_interval(labels: ArrayLike, scores: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float]:
    """Compute a confidence interval of the area under the ROC curve.

    It uses DeLong's variance on the logit scale, which needs no random numbers, stays within 0 and 1, and takes one
    pass over the ranks; a bootstrap of a few slides would repeat the same few values. For perfect scores and few
    slides, where DeLong's variance is 0 or almost 0, there are two corrections: the area is kept half a slide of the
    smaller class away from 0 and 1, so that its logit is finite, and the variance is at least that of Hanley and McNeil
    at that area. For perfect scores the result is close to the exact binomial bound of the smaller class.

    Args:
        labels: 0 or 1, shape (N,).
        scores: finite, higher means more positive, shape (N,).
        confidence: above 0 and below 1.

    Returns:
        (low, high), with the area between them.

    Raises:
        ValueError: see `auroc`; or the confidence is out of range.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988); Hanley and McNeil, Radiology 143 (1982).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: must be above 0 and below 1")
    positive, negative = _by_label(labels, scores)
    return _interval(positive, negative, confidence)


def auroc_by_stratum(
    labels: ArrayLike, scores: ArrayLike, strata: Iterable[str | None], *, confidence: float = 0.95
) -> Mapping[str, Auroc]:
    """Compute the area under the ROC curve for each group of positives, each against the same negatives.

    Args:
        labels: 0 or 1, shape (N,).
        scores: finite, higher means more positive, shape (N,).
        strata: stratum of each slide; those of negatives are ignored. Positives without one count in `all` only.
        confidence: confidence of the intervals, above 0 and below 1.

    Returns:
        Areas by group: the positives' strata in alphabetical order, ``macro+micro`` if there is either, and ``all``.

    Raises:
        ValueError: see `auroc`; or the numbers of strata and labels differ.
    """
    positive, negative = _by_label(labels, scores)
    names = list(strata)
    if len(names) != len(positive) + len(negative):
        raise ValueError(f"{len(names)} strata for {len(positive) + len(negative)} labels: give one per label")
    stratum = np.array([name or "" for name, label in zip(names, np.asarray(labels), strict=True) if label == 1])
    groups = {str(name): stratum == name for name in np.unique(stratum) if name}
    # The paper reports this union; it exists also if only one of the two strata does.
    either = np.isin(stratum, MACRO_MICRO.split("+"))
    if either.any():
        groups[MACRO_MICRO] = either
    groups[ALL] = np.ones(len(stratum), dtype=bool)
    return {name: _measure(positive[members], negative, confidence) for name, members in groups.items()}


def _measure(positive: Floats, negative: Floats, confidence: float) -> Auroc:
    """Compute the area of one group with its interval."""
    area = float(_shares_below(positive, negative).mean())
    low, high = _interval(positive, negative, confidence)
    return Auroc(area, low, high, len(positive), len(negative))


def _interval(positive: Floats, negative: Floats, confidence: float) -> tuple[float, float]:
    """Compute the interval that `auroc_interval` describes."""
    below = _shares_below(positive, negative)
    area = float(below.mean())
    half_slide = 0.5 / min(len(positive), len(negative))
    inner = float(np.clip(area, half_slide, 1 - half_slide))
    delong = _delong_variance(below, 1 - _shares_below(negative, positive))
    variance = max(delong, _hanley_variance(max(inner, 1 - inner), len(positive), len(negative)))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt(variance) / (inner * (1 - inner))
    centre = np.log(inner / (1 - inner))
    low, high = (float(1 / (1 + np.exp(-end))) for end in (centre - reach, centre + reach))
    # The ends are those around the moved area; the interval must contain the measured one too.
    return min(low, area), max(high, area)


def _delong_variance(below: Floats, above: Floats) -> float:
    """Return the variance of the area from its variation over positives and over negatives; 0 for classes of one."""
    return float(sum(part.var(ddof=1) / len(part) for part in (below, above) if len(part) > 1))


def _hanley_variance(area: float, num_positive: int, num_negative: int) -> float:
    """Return the variance of an area for exponential scores, which depends only on the area and the numbers."""
    two_positives, two_negatives = area / (2 - area), 2 * area**2 / (1 + area)
    spread = (num_positive - 1) * (two_positives - area**2) + (num_negative - 1) * (two_negatives - area**2)
    return (area * (1 - area) + spread) / (num_positive * num_negative)


def _shares_below(scores: Floats, others: Floats) -> Floats:
    """Return for each score the share of the others that are below it; equal scores count half."""
    ordered = np.sort(others)
    # "left" counts the scores below, "right" the scores below or equal; their mean counts equal scores half.
    below = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    return below / (2 * len(others))


def _by_label(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Return the scores of the positives and of the negatives, checked."""
    label, score = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise ValueError(f"labels of shape {label.shape} and scores of shape {score.shape}: want one row of each")
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"labels hold {sorted(set(label.tolist()) - {0, 1})}: want 0 or 1")
    if not np.isfinite(score).all():
        raise ValueError(f"{int((~np.isfinite(score)).sum())} scores are not finite")
    for value in (0, 1):
        if not (label == value).any():
            raise ValueError(f"no label is {value}: the area under the ROC curve needs both labels")
    return score[label == 1], score[label == 0]
