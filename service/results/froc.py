"""The free-response ROC of detections: the share of lesions found against the number of false positives per slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATES = (0.25, 0.5, 1, 2, 4, 8)
"""False positives per slide at which CAMELYON16 reads the curve."""


@dataclass(frozen=True, slots=True)
class Detections:
    """Detections on one slide."""

    scores: NDArray[np.float64]
    """Confidence of each detection, (N,)."""
    lesion: NDArray[np.int64]
    """Number of the lesion that each detection hits, (N,); -1 for none."""
    num_lesions: int
    """Number of lesions on the slide."""


@dataclass(frozen=True, slots=True)
class Froc:
    """A free-response ROC curve."""

    num_slides: int
    """Number of slides, those without lesions included."""
    num_lesions: int
    """Number of lesions on all slides."""
    sensitivity: tuple[float, ...]
    """Share of the lesions found at each of `RATES`, 0 to 1."""

    @property
    def score(self) -> float:
        """Mean sensitivity over `RATES`: the figure by which CAMELYON16 ranked its entries."""
        return float(np.mean(self.sensitivity))

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """Points of the curve: false positives per slide and sensitivity."""
        return tuple(zip(RATES, self.sensitivity, strict=True))


def compute_froc(slides: Sequence[Detections]) -> Froc:
    """Compute the curve of a cohort.

    A lesion is found at a threshold if it contains a detection whose score reaches the threshold. Further detections in
    the same lesion count neither as found nor as false. A detection outside all lesions is a false positive, on a slide
    with lesions as on one without.

    Raises:
        ValueError: if no slide has a lesion.

    Source: Ehteshami Bejnordi et al., JAMA 318 (2017), second task of CAMELYON16.
    """
    num_lesions = sum(slide.num_lesions for slide in slides)
    if not num_lesions:
        raise ValueError("no slide has a lesion, so that a sensitivity is undefined; give outlines of lesions")
    false_scores = np.sort(np.concatenate([slide.scores[slide.lesion < 0] for slide in slides]))[::-1]
    best_scores = np.array(
        [slide.scores[slide.lesion == n].max() for slide in slides for n in np.unique(slide.lesion[slide.lesion >= 0])],
        dtype=np.float64,
    )
    sensitivity = []
    for rate in RATES:
        allowed = int(rate * len(slides))  # exact: all rates are multiples of 1/4
        # Every threshold above the first false positive that exceeds the allowed number may be chosen.
        above = false_scores[allowed] if allowed < len(false_scores) else -np.inf
        sensitivity.append(float((best_scores > above).sum() / num_lesions))
    return Froc(len(slides), num_lesions, tuple(sensitivity))
