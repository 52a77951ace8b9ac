"""Which schedules a search may try: those that break its budget or do not fit the card are refused beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import tune

from magnet.config import MAX_PATCHES
from magnet.plan import Cut
from ray_jobs.training.fit import fits, predicted, refusal
from service.errors import UsageError
from service.settings.train import TrainSettings
from service.settings.tune import Schedule, SearchSettings, in_words, trial_settings

PROBES: tuple[Schedule, ...] = ((1, 1), (1, 2), (2, 1))
"""Schedules whose measured memory tells that of all others: it is linear in inner nodes and last patches."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A schedule that is not tried."""

    schedule: Schedule
    reason: str


def schedules(
    search: SearchSettings, base: TrainSettings, card_bytes: float | None
) -> tuple[list[Schedule], list[Refused]]:
    """Those to try and those refused.

    Args:
        search: the search.
        base: the training that is varied.
        card_bytes: memory of the card; None: none is there to be too small.

    Raises:
        UsageError: none is left.
    """
    allowed, refused = [], []
    peak = None if card_bytes is None else PeakOfOne(base)
    most = min(search.max_patches, MAX_PATCHES)
    for schedule in search.all_schedules():
        num_patches = int(np.prod(schedule))
        if num_patches > most:
            refused.append(Refused(schedule, f"{num_patches} last patches, max_patches is {most}"))
        elif peak is not None and card_bytes is not None and not fits(size := peak(schedule), card_bytes):
            settings = trial_settings(base, {"schedule": in_words(schedule)})
            refused.append(Refused(schedule, refusal(settings, size, card_bytes)))
        else:
            allowed.append(schedule)
    if not allowed:
        raise UsageError(f"no schedule is left to try; the first of those refused: {refused[0].reason}")
    return allowed, refused


class PeakOfOne:
    """Peak memory of a step with one slide at a time, in bytes, for any schedule, from three that are measured.

    Args:
        base: the training that is varied.
    """

    def __init__(self, base: TrainSettings) -> None:
        peaks = [
            predicted(trial_settings(base, {"schedule": in_words(probe)}), Cut(1, base.recipe.batch)).peak_bytes
            for probe in PROBES
        ]
        self._weights = np.linalg.solve(np.array([_size(probe) for probe in PROBES]), np.array(peaks, np.float64))

    def __call__(self, schedule: Schedule) -> float:
        """Of this one."""
        return float(np.array(_size(schedule)) @ self._weights)


def _size(schedule: Schedule) -> tuple[float, float, float]:
    """1, nodes above the last patches, last patches."""
    nodes = np.cumprod([1, *schedule])
    return 1.0, float(nodes[:-1].sum()), float(nodes[-1])


def space(search: SearchSettings, allowed: Sequence[Schedule]) -> dict[str, Any]:
    """What Tune chooses from."""
    one_of = tune.grid_search if search.method == "grid" else tune.choice
    result: dict[str, Any] = {"schedule": one_of([in_words(schedule) for schedule in allowed])}
    for name in ("sampler", "encoder", "frozen_patch"):
        if choices := getattr(search, name):
            result[name] = one_of(list(choices))
    for name in ("learning_rate", "temperature"):
        if (ends := getattr(search, name)) is not None:
            result[name] = tune.loguniform(*ends)
    return result
