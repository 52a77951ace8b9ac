"""What a job is told: one definition for YAML files, command lines, HTTP requests and workers.

A training's settings are a preset, changed by a config file, changed by single overrides, in this order. Every key is
checked; an unknown one is an error. Nothing here comes from the environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from magnet.config import CLOSED, ModelConfig, RecipeConfig
from magnet.presets import PRESETS
from service import storage
from service.errors import UsageError

Settings = TypeVar("Settings")


REGISTERED_NAME = re.compile(r"[^/:@%\x00-\x1f]{1,200}")
"""Of a model in MLflow's registry."""
ALIAS = re.compile(r"[A-Za-z0-9_-]{1,100}")
VERSION_NAME = re.compile(r"latest|v\d+", re.IGNORECASE)
"""Aliases that MLflow keeps for itself."""


class SettingsError(UsageError):
    """Settings are unknown or out of range. To act: whoever wrote them. Retrying does not help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeSettings:
    """Where a job runs, and with how much. Changes no result."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    num_workers: int = 1
    """Training or scoring processes."""
    cpus_per_worker: int = 1
    """CPU cores of each; also its torch threads."""
    gpus_per_worker: float | None = None
    """GPUs of each; null: one where the cluster has any."""
    gpu_memory_gb: float | None = None
    """Gigabytes that the micro-batch is chosen for; null: the GPU's own, 0: `recipe.micro_batch` is taken as it is."""
    readers: int | None = None
    """Processes of one CPU each that read windows for the training or scoring processes; 0: these read for themselves.
    null: 0 on one machine, on several what CPUs are left, at most 8 for each process. A search's trials have none."""
    reader_threads: int = 16
    """Threads of each process that wait for the object store."""
    tile_cache_mb: int = 256
    """Decoded tiles kept in memory by each process."""
    slides_in_flight: int = 16
    """Slides that a scoring process works on at once: many hide reads that take longer than a GPU computes."""
    checkpoint_minutes: float = 10.0
    """Minutes of training between two checkpoints; each epoch ends with one too."""
    max_failures: int = 8
    """Deaths of training workers, beside preemptions, after which a job ends."""
    quarantine_share: float = 0.01
    """Share of a training's slides that may turn unreadable while it runs; one slide always may."""

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
        if not self.checkpoint_minutes > 0:
            raise ValueError(f"checkpoint_minutes = {self.checkpoint_minutes}: must be above 0")
        if not 0 <= self.quarantine_share <= 1:
            raise ValueError(f"quarantine_share = {self.quarantine_share}: must be 0 to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """A training job."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    preset: Literal["evidence", "paper"] = "evidence"
    """What `model` and `recipe` start from; see `magnet.presets`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    """How it is trained."""
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    """Where it runs."""
    train_without_strata: tuple[Literal["macro", "micro", "itc"], ...] = ()
    """Positive slides of these strata are left out of train and val, not of test (paper: itc)."""
    fit_on: Literal["train", "train+val"] = "train"
    """"train+val" is the paper's last retraining: no validation, and the last epoch's model is registered."""
    experiment: str = "magnet"
    """MLflow experiment."""
    registered_model: str = "magnet"
    """Name under which MLflow's registry keeps the best model."""
    alias: str = "challenger"
    """Alias that the registry gives it."""

    def __post_init__(self) -> None:
        # MLflow would refuse these names too, but only when the training is over.
        if not REGISTERED_NAME.fullmatch(self.registered_model):
            raise ValueError(f"registered_model = {self.registered_model!r}: must be a name without / : @ and %")
        if not ALIAS.fullmatch(self.alias) or VERSION_NAME.fullmatch(self.alias):
            raise ValueError(f"alias = {self.alias!r}: must be letters, digits, _ or -, not 'latest' or a version")
        most = self.recipe.batch // self.recipe.micro_batch
        if self.compute.num_workers > most:
            raise ValueError(
                f"compute.num_workers = {self.compute.num_workers}: a step of {self.recipe.batch} slides has {most} "
                f"micro-batches of {self.recipe.micro_batch}, more workers would idle; lower recipe.micro_batch"
            )


def train_settings(config_uri: str | None, overrides: Sequence[str] = ()) -> TrainSettings:
    """Settings of a training from a YAML file (any place that `service.storage` reads) and ``key.key=value`` words.

    Raises:
        SettingsError: naming every key that is unknown or has a wrong value.
    """
    where, values = config_uri or "the command line", written(config_uri, overrides)
    preset = values.get("preset", "evidence")
    if preset not in list(PRESETS):  # YAML may hold what has no hash
        raise SettingsError(f"{where}: preset = {preset!r}: must be one of {', '.join(sorted(PRESETS))}")
    return parse(TrainSettings, merged(PRESETS[preset], values), where)


def written(config_uri: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """What a YAML file and ``key.key=value`` words say, unchecked.

    Raises:
        SettingsError: they are no such file or words.
    """
    values = _read_yaml(config_uri) if config_uri else {}
    for word in overrides:
        _put(values, word)
    return values


def parse(kind: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """`values` as settings of a kind.

    Raises:
        SettingsError: naming `where` and every wrong key.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'settings'}: {_plain(e)}" for e in error.errors()]
        raise SettingsError("\n".join([f"{where}: {len(lines)} wrong setting(s)", *lines])) from error


def to_dict(settings: object) -> dict[str, Any]:
    """Settings as plain values that JSON and YAML can hold; `parse` reads them back."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys, lists as "3,2", as MLflow's parameters want them."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    return result


def changed(settings: TrainSettings) -> dict[str, Any]:
    """What a training changes of its preset, with dotted keys: a preset is never altered silently."""
    base = flat(to_dict(parse(TrainSettings, {**PRESETS[settings.preset], "preset": settings.preset}, "preset")))
    return {key: value for key, value in flat(to_dict(settings)).items() if base[key] != value}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, mapping by mapping."""
    result = deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


class _Yaml(yaml.SafeLoader):
    """YAML as of version 1.2, where on, off, yes and no are words: some settings here are called on and off."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_yaml(uri: str) -> dict[str, Any]:
    try:
        values = yaml.load(storage.read_bytes(uri), _Yaml)
    except yaml.YAMLError as error:
        raise SettingsError(f"{uri}: not YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{uri}: holds a {type(values).__name__}; want keys such as preset, model, recipe, compute")
    return values


def _put(values: dict[str, Any], word: str) -> None:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise SettingsError(f"override {word!r}: want key.key=value, for example recipe.epochs=5")
    *path, last = key.split(".")
    for name in path:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise SettingsError(f"override {word!r}: {name} is a value, not a group of settings")
    try:
        values[last] = yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        raise SettingsError(f"override {word!r}: the value is not YAML: {error}") from error


def _plain(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "unexpected_keyword_argument":
        return "unknown setting"
    return message if error["type"] == "value_error" else f"{message} (got {error['input']!r})"
