"""What a search over trainings is told, beside the training that it varies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Literal

from magnet.config import CLOSED
from service.settings import train as settings
from service.settings.train import TrainSettings

Schedule = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """A search. What is null or empty stays as the training's config has it."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    trials: int = 20
    """Trainings; a grid takes all there are instead."""
    method: Literal["optuna", "random", "grid"] = "optuna"
    """Who chooses the next one."""
    schedules: tuple[Schedule, ...] = ()
    """To choose from; empty: all of `depths` layers with `regions` per parent."""
    depths: tuple[int, int] = (2, 5)
    """Fewest and most layers."""
    regions: tuple[int, int] = (1, 4)
    """Fewest and most regions per parent, P_l."""
    max_patches: int = 54
    """Schedules with more last patches are refused; the paper's largest has 54."""
    learning_rate: tuple[float, float] | None = None
    """Range, searched on a logarithmic scale."""
    temperature: tuple[float, float] | None = None
    """Range of `model.locator.temperature`, the same way."""
    sampler: tuple[Literal["lms", "bilinear"], ...] = ()
    """Choices of `model.locator.sampler`."""
    encoder: tuple[str, ...] = ()
    """Choices of `model.classifier.encoder`."""
    frozen_patch: tuple[bool, ...] = ()
    """Choices of `model.zoom.frozen_patch`."""
    auroc_per_mb: float = 0.0
    """AUROC that a megabyte read per slide must be worth; 0: AUROC alone is the objective."""
    grace_epochs: int = 3
    """Epochs that every trial gets before it may be stopped; the same unit for all depths."""
    reduction: int = 3
    """One of this many trials goes on at each rung of ASHA; 1: none is stopped early."""
    at_once: int | None = None
    """Trials at a time; null: as many as the cluster has room for."""
    seed: int = 0
    """Of the search."""

    def __post_init__(self) -> None:
        for name in ("trials", "max_patches", "grace_epochs", "reduction"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.at_once is not None and self.at_once < 1:
            raise ValueError(f"at_once = {self.at_once}: must be at least 1, or null")
        for name in ("depths", "regions", "learning_rate", "temperature"):
            pair = getattr(self, name)
            if pair is not None and not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name} = {list(pair)}: must be the smallest and the largest, above 0")
        if self.auroc_per_mb < 0:
            raise ValueError(f"auroc_per_mb = {self.auroc_per_mb}: must be 0 or more")
        if self.method == "grid" and (self.learning_rate or self.temperature):
            raise ValueError(
                "method = grid: learning_rate and temperature are ranges; search them with optuna or random"
            )

    def all_schedules(self) -> list[Schedule]:
        """Those to choose from, refused ones among them, the cheapest first."""
        if self.schedules:
            return list(dict.fromkeys(self.schedules))
        numbers = range(self.regions[0], self.regions[1] + 1)
        depths = range(self.depths[0], self.depths[1] + 1)
        return [schedule for depth in depths for schedule in product(numbers, repeat=depth)]

    def objective(self, auroc: float, bytes_per_slide: float) -> float:
        """What the search makes large."""
        return auroc - self.auroc_per_mb * bytes_per_slide / 1e6


CHOICES = {
    "schedule": "model.zoom.schedule",
    "learning_rate": "recipe.learning_rate",
    "temperature": "model.locator.temperature",
    "sampler": "model.locator.sampler",
    "encoder": "model.classifier.encoder",
    "frozen_patch": "model.zoom.frozen_patch",
}
"""What a search may vary, and the setting that it is."""


def search_settings(config_uri: str | None, overrides: Sequence[str]) -> SearchSettings:
    """Settings of a search from a YAML file and ``key=value`` words.

    Raises:
        SettingsError: naming every key that is unknown or has a wrong value.
    """
    return settings.parse(SearchSettings, settings.written(config_uri, overrides), config_uri or "the command line")


def trial_settings(base: TrainSettings, chosen: dict[str, Any]) -> TrainSettings:
    """A training with what a search chose.

    Args:
        base: the training that is varied.
        chosen: values by the names of `CHOICES`; the schedule in words, as "3,2,3".

    Raises:
        SettingsError: they do not go together.
    """
    values = settings.to_dict(base)
    for name, value in chosen.items():
        *path, last = CHOICES[name].split(".")
        group = values
        for key in path:
            group = group[key]
        group[last] = [int(p) for p in value.split(",")] if name == "schedule" else value
    return settings.parse(TrainSettings, values, f"trial {chosen}")


def in_words(schedule: Schedule) -> str:
    """As "3,2,3"."""
    return ",".join(map(str, schedule))
