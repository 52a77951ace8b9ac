"""How many lesions are found at how many false alarms: the free-response ROC of detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATES = (0.25, 0.5, 1, 2, 4, 8)
"""False alarms per slide at which CAMELYON16 reads the curve."""


@dataclass(frozen=True, slots=True)
class Detections:
    """What was pointed at on one slide."""

    scores: NDArray[np.float64]
    """(N,) how sure."""
    lesion: NDArray[np.int64]
    """(N,) which of the slide's lesions is hit, -1 for none."""
    num_lesions: int
    """On the slide."""


@dataclass(frozen=True, slots=True)
class Froc:
    """A free-response ROC curve."""

    num_slides: int
    num_lesions: int
    sensitivity: tuple[float, ...]
    """Share of the lesions found at each of `RATES`."""

    @property
    def score(self) -> float:
        """Mean sensitivity: the challenge's figure."""
        return float(np.mean(self.sensitivity))


def froc(slides: Sequence[Detections]) -> Froc:
    """The curve of a cohort.

    A lesion is found at a threshold if a detection that reaches it lies in it; further ones in the same lesion count
    neither way. A detection in no lesion is a false alarm, on whichever slide.

    Raises:
        ValueError: there is no lesion.

    Source: Ehteshami Bejnordi et al., JAMA 318 (2017), CAMELYON16's second task.
    """
    num_lesions = sum(one.num_lesions for one in slides)
    if not num_lesions:
        raise ValueError("no lesion on any slide: there is nothing to find")
    alarms = np.sort(np.concatenate([one.scores[one.lesion < 0] for one in slides]))[::-1]
    found = [one.scores[one.lesion == n].max() for one in slides for n in np.unique(one.lesion[one.lesion >= 0])]
    best = np.array(found, dtype=np.float64)
    sensitivity = []
    for rate in RATES:
        allowed = int(rate * len(slides) + 1e-9)
        # All thresholds above the first alarm that is too many are allowed.
        above = alarms[allowed] if allowed < len(alarms) else -np.inf
        sensitivity.append(float((best > above).sum() / num_lesions))
    return Froc(len(slides), num_lesions, tuple(sensitivity))
