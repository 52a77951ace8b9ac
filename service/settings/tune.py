"""Settings of a search: what it varies of a training, and how many trials it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Literal

from magnet.config import FORBID_EXTRA
from service.settings.parsing import parse, read_values, to_dict
from service.settings.train import TrainSettings

Schedule = tuple[int, ...]
"""Regions per parent in each layer, P_l."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """Settings of a search. A range that is null or a list that is empty is not varied."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    trials: int = 20
    """Number of trainings; a grid tries all combinations instead."""
    method: Literal["optuna", "random", "grid"] = "optuna"
    """Method that chooses the next trial."""
    schedules: tuple[Schedule, ...] = ()
    """Schedules to try; empty: all with `depths` layers and `regions` regions per parent."""
    depths: tuple[int, int] = (2, 5)
    """Smallest and largest number of layers."""
    regions: tuple[int, int] = (1, 4)
    """Smallest and largest number of regions per parent, P_l."""
    max_patches: int = 54
    """Largest number of last patches of a schedule; the paper's largest schedule has 54."""
    learning_rate: tuple[float, float] | None = None
    """Range of `recipe.learning_rate`, searched on a logarithmic scale."""
    temperature: tuple[float, float] | None = None
    """Range of `model.locator.temperature`, searched on a logarithmic scale."""
    sampler: tuple[Literal["lms", "bilinear"], ...] = ()
    """Choices of `model.locator.sampler`."""
    encoder: tuple[str, ...] = ()
    """Choices of `model.classifier.encoder`."""
    frozen_patch: tuple[bool, ...] = ()
    """Choices of `model.zoom.frozen_patch`."""
    auroc_per_mb: float = 0.0
    """AUROC that each megabyte read per slide costs in the objective; 0: the objective is the AUROC alone."""
    grace_epochs: int = 3
    """Number of epochs of every trial before it may be stopped."""
    reduction: int = 3
    """Reduction factor of ASHA: one of this many trials continues at each rung; 1: no trial is stopped early."""
    at_once: int | None = None
    """Number of trials that run at once; null: as many as the cluster has resources for."""
    seed: int = 0
    """Seed of the search."""

    def __post_init__(self) -> None:
        for name in ("trials", "max_patches", "grace_epochs", "reduction"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.at_once is not None and self.at_once < 1:
            raise ValueError(f"at_once = {self.at_once}: must be at least 1, or null")
        for name in ("depths", "regions", "learning_rate", "temperature"):
            pair = getattr(self, name)
            if pair is not None and not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name} = {list(pair)}: must be two numbers above 0, the smallest first")
        if self.auroc_per_mb < 0:
            raise ValueError(f"auroc_per_mb = {self.auroc_per_mb}: must be 0 or more")
        # A grid tries all combinations of listed values; a range has no list of values.
        if self.method == "grid" and (self.learning_rate or self.temperature):
            raise ValueError(
                "method = grid: cannot search the ranges learning_rate and temperature; use method optuna or random"
            )

    def list_schedules(self) -> list[Schedule]:
        """Return the schedules to try, the shallowest first, those with more than `max_patches` included."""
        if self.schedules:
            return list(dict.fromkeys(self.schedules))
        regions = range(self.regions[0], self.regions[1] + 1)
        depths = range(self.depths[0], self.depths[1] + 1)
        return [schedule for depth in depths for schedule in product(regions, repeat=depth)]

    def compute_objective(self, auroc: float, bytes_per_slide: float) -> float:
        """Return the value that the search maximises: the AUROC less the price of the bytes read."""
        return auroc - self.auroc_per_mb * bytes_per_slide / 1e6


CHOICES = {
    "schedule": "model.zoom.schedule",
    "learning_rate": "recipe.learning_rate",
    "temperature": "model.locator.temperature",
    "sampler": "model.locator.sampler",
    "encoder": "model.classifier.encoder",
    "frozen_patch": "model.zoom.frozen_patch",
}
"""Names that a search may vary, and the setting of each."""


def read_search_settings(config_uri: str | None, overrides: Sequence[str]) -> SearchSettings:
    """Read the settings of a search.

    Args:
        config_uri: YAML file, a path or URI; None for no file.
        overrides: texts such as ``trials=40``.

    Raises:
        SettingsError: with one line for each key that is unknown or has a wrong value.
    """
    return parse(SearchSettings, read_values(config_uri, overrides), config_uri or "the command line")


def make_trial_settings(base: TrainSettings, chosen: dict[str, Any]) -> TrainSettings:
    """Return the settings of a trial.

    Args:
        base: settings of the training that is varied.
        chosen: values that the search chose, by the names of `CHOICES`; the schedule is a text such as "3,2,3".

    Raises:
        SettingsError: if the values contradict each other or the training.
    """
    values = to_dict(base)
    for name, value in chosen.items():
        *path, last = CHOICES[name].split(".")
        group = values
        for key in path:
            group = group[key]
        group[last] = [int(p) for p in value.split(",")] if name == "schedule" else value
    return parse(TrainSettings, values, f"trial {chosen}")


def format_schedule(schedule: Schedule) -> str:
    """Return a schedule as a text such as "3,2,3"."""
    return ",".join(map(str, schedule))
