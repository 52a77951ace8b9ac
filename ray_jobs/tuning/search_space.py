"""The schedules that a search may try; those beyond its budget or a GPU's memory are refused before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import tune

from magnet.config import MAX_PATCHES
from magnet.plan import BatchSplit
from ray_jobs.training.memory.fit import explain_refusal, fits, predict_memory
from service.errors import UsageError
from service.settings.train import TrainSettings
from service.settings.tune import Schedule, SearchSettings, format_schedule, make_trial_settings

PROBES: tuple[Schedule, ...] = ((1, 1), (1, 2), (2, 1))
"""Schedules from whose measured memory that of all others follows: it is linear in inner nodes and last patches."""


@dataclass(frozen=True, slots=True)
class RefusedSchedule:
    """A schedule that is not tried."""

    schedule: Schedule
    """Regions per parent, layer by layer."""
    reason: str
    """Why it is refused, and what to do."""


def select_schedules(
    search: SearchSettings, base: TrainSettings, gpu_bytes: float | None
) -> tuple[list[Schedule], list[RefusedSchedule]]:
    """Return the schedules to try and those that are refused.

    Args:
        search: settings of the search.
        base: settings of the training that it varies.
        gpu_bytes: memory of a trial's GPU; None: without a GPU no schedule is too large.

    Raises:
        UsageError: no schedule is left.
    """
    allowed, refused = [], []
    predictor = None if gpu_bytes is None else PeakPredictor(base)
    max_patches = min(search.max_patches, MAX_PATCHES)  # a model accepts no more, whatever the search allows
    for schedule in search.list_schedules():
        num_patches = int(np.prod(schedule))
        if num_patches > max_patches:
            refused.append(RefusedSchedule(schedule, f"{num_patches} last patches, max_patches is {max_patches}"))
        elif (
            predictor is not None and gpu_bytes is not None and not fits(peak := predictor.predict(schedule), gpu_bytes)
        ):
            settings = make_trial_settings(base, {"schedule": format_schedule(schedule)})
            refused.append(RefusedSchedule(schedule, explain_refusal(settings, peak, gpu_bytes)))
        else:
            allowed.append(schedule)
    if not allowed:
        raise UsageError(f"no schedule is left to try; the first refused one: {refused[0].reason}")
    return allowed, refused


class PeakPredictor:
    """Predicts the peak memory of a step with one slide at a time, for any schedule, from three measured ones.

    Args:
        base: settings of the training that is varied.
    """

    def __init__(self, base: TrainSettings) -> None:
        cut = BatchSplit(1, base.recipe.batch)
        peaks = [
            predict_memory(make_trial_settings(base, {"schedule": format_schedule(probe)}), cut).peak_bytes
            for probe in PROBES
        ]
        # Three schedules determine the three weights of a linear function.
        self._weights = np.linalg.solve(np.array([_terms(probe) for probe in PROBES]), np.array(peaks, np.float64))

    def predict(self, schedule: Schedule) -> float:
        """Return the peak memory for a schedule in bytes."""
        return float(np.array(_terms(schedule)) @ self._weights)


def _terms(schedule: Schedule) -> tuple[float, float, float]:
    """Return what the memory is linear in: 1, nodes above the last patches, last patches."""
    nodes = np.cumprod([1, *schedule])
    return 1.0, float(nodes[:-1].sum()), float(nodes[-1])


def make_space(search: SearchSettings, allowed: Sequence[Schedule]) -> dict[str, Any]:
    """Return the space of values that Ray Tune selects from, by name."""
    one_of = tune.grid_search if search.method == "grid" else tune.choice
    space: dict[str, Any] = {"schedule": one_of([format_schedule(schedule) for schedule in allowed])}
    for name in ("sampler", "encoder", "frozen_patch"):
        if choices := getattr(search, name):
            space[name] = one_of(list(choices))
    for name in ("learning_rate", "temperature"):
        if (ends := getattr(search, name)) is not None:
            space[name] = tune.loguniform(*ends)
    return space
