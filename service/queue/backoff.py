"""The wait between attempts of a job."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """The wait between attempts: it doubles with each attempt, and is shortened at random by up to half.

    Without the random part, jobs that failed together because of a store would return to it together.
    """

    first_s: float
    """Wait after the first failed attempt in seconds."""
    most_s: float
    """Longest wait in seconds."""

    def wait_s(self, num_failed: int) -> float:
        """Return the wait in seconds after some failed attempts."""
        longest = min(self.first_s * 2.0 ** min(num_failed - 1, 30), self.most_s)
        return longest * random.uniform(0.5, 1)
