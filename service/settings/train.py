"""Settings of a training: one definition for YAML files, command lines, HTTP requests and workers.

A training starts from a preset; a config file changes the preset, and single overrides change both. Nothing is read
from the environment, so that the recorded settings are all that decides over a result.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from magnet.config import FORBID_EXTRA, ModelConfig, RecipeConfig
from magnet.presets import PRESETS
from service.settings.parsing import SettingsError, flatten, merge_settings, parse, read_values, to_dict

REGISTERED_NAME = re.compile(r"[^/:@%\x00-\x1f]{1,200}")
"""Name of a model in MLflow's registry."""
ALIAS = re.compile(r"[A-Za-z0-9_-]{1,100}")
"""Alias of a model version in MLflow's registry."""
RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)
"""Aliases that MLflow reserves for its own use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeSettings:
    """Resources of a job. They change no result."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    num_workers: int = 1
    """Number of training or scoring processes."""
    cpus_per_worker: int = 1
    """CPU cores of each process; also its number of torch threads."""
    gpus_per_worker: float | None = None
    """GPUs of each process; null: 1 if the cluster has any, otherwise 0."""
    gpu_memory_gb: float | None = None
    """GPU memory in GB for which the micro-batch is chosen; null: memory of the GPU, 0: use `recipe.micro_batch`."""
    readers: int | None = None
    """Number of processes of one CPU each that read windows for the training or scoring processes; 0: these processes
    read for themselves. null: 0 on one machine; on several, the remaining CPUs, at most 8 for each process. Trials of a
    search have no readers."""
    reader_threads: int = 16
    """Threads of each process that wait for the object store, 1 to 1024."""
    tile_cache_mb: int = 256
    """Memory of each process for decoded tiles, in MB."""
    slides_in_flight: int = 16
    """Number of slides that a scoring process works on at once, 1 to 1024; many hide the latency of the store."""
    checkpoint_minutes: float = 10.0
    """Minutes of training between two checkpoints; each epoch ends with one too."""
    max_failures: int = 8
    """Number of failures of training workers, preemptions not counted, after which a job ends."""
    quarantine_share: float = 0.01
    """Share of a training's slides that may become unreadable while it runs, 0 to 1; one slide always may."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "cpus_per_worker", "reader_threads", "slides_in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name, most in (("reader_threads", 1024), ("slides_in_flight", 1024)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at most {most}")
        for name in ("gpus_per_worker", "gpu_memory_gb", "readers", "tile_cache_mb", "max_failures"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 0 or more")
        # Written so that NaN fails too.
        if not self.checkpoint_minutes > 0:
            raise ValueError(f"checkpoint_minutes = {self.checkpoint_minutes}: must be above 0")
        if not 0 <= self.quarantine_share <= 1:
            raise ValueError(f"quarantine_share = {self.quarantine_share}: must be 0 to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """Settings of a training job."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    preset: Literal["evidence", "paper"] = "evidence"
    """Starting values of `model` and `recipe`; see `magnet.presets`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Settings of the network."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    """Settings of the optimisation."""
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    """Resources of the job."""
    train_without_strata: tuple[Literal["macro", "micro", "itc"], ...] = ()
    """Strata whose slides are left out of train and val, but not of test (paper: itc)."""
    fit_on: Literal["train", "train+val"] = "train"
    """Splits to train on. "train+val" is the paper's final retraining: without validation, the model of the last epoch
    is registered."""
    experiment: str = "magnet"
    """MLflow experiment of the run."""
    registered_model: str = "magnet"
    """Name under which MLflow's registry keeps the best model."""
    alias: str = "challenger"
    """Alias that the registered model version gets."""

    def __post_init__(self) -> None:
        # MLflow would refuse a wrong name too, but only at the end of the training.
        if not REGISTERED_NAME.fullmatch(self.registered_model):
            raise ValueError(
                f"registered_model = {self.registered_model!r}: must be 1 to 200 characters without / : @ and %"
            )
        if not ALIAS.fullmatch(self.alias):
            raise ValueError(f"alias = {self.alias!r}: must be 1 to 100 letters, digits, _ or -")
        if RESERVED_ALIAS.fullmatch(self.alias):
            raise ValueError(f"alias = {self.alias!r}: is reserved by MLflow, as are 'latest' and v1, v2, ...")
        num_micro_batches = self.recipe.batch // self.recipe.micro_batch
        if self.compute.num_workers > num_micro_batches:
            raise ValueError(
                f"compute.num_workers = {self.compute.num_workers}: must be at most {num_micro_batches}, because a "
                f"step of {self.recipe.batch} slides has {num_micro_batches} micro-batches of "
                f"{self.recipe.micro_batch}; lower recipe.micro_batch to use more workers"
            )


def read_train_settings(config_uri: str | None, overrides: Sequence[str] = ()) -> TrainSettings:
    """Read the settings of a training.

    Args:
        config_uri: YAML file, a path or any URI that `service.storage` reads; None for no file.
        overrides: texts such as ``recipe.epochs=5``.

    Raises:
        SettingsError: with one line for each key that is unknown or has a wrong value.
    """
    where, values = config_uri or "the command line", read_values(config_uri, overrides)
    preset = values.get("preset", "evidence")
    if preset not in list(PRESETS):  # a list: YAML may hold a value that cannot be hashed
        raise SettingsError(f"{where}: preset = {preset!r}: must be {' or '.join(sorted(PRESETS))}")
    return parse(TrainSettings, merge_settings(PRESETS[preset], values), where)


def find_changes(settings: TrainSettings) -> dict[str, Any]:
    """Return the settings that differ from their preset, with dotted keys, so that each run records them."""
    preset = parse(TrainSettings, {**PRESETS[settings.preset], "preset": settings.preset}, "preset")
    preset_values = flatten(to_dict(preset))
    return {key: value for key, value in flatten(to_dict(settings)).items() if preset_values[key] != value}
