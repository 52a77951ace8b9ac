"""What can be asked for: jobs of four kinds, as data.

The settings are those of YAML files and command lines, checked in the same way; unknown keys are refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, TypeAdapter

from magnet.config import CLOSED
from magnet.presets import PRESETS
from service import storage
from service.errors import UsageError
from service.queue.kinds import KINDS as KINDS
from service.settings import train as settings
from service.settings.parsing import merged, to_dict
from service.settings.score import ScoreSettings
from service.settings.service import ServiceSettings
from service.settings.train import TrainSettings
from service.settings.tune import SearchSettings

Uri = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f\s][^\x00-\x1f\x7f]*$")]
"""A path or URI: one line."""
REGISTERED = re.compile(
    r"models:/[^/@:\\]+(@[A-Za-z0-9_.-]+|/[0-9]+)|runs:/[0-9a-f]{32}(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+"
)
"""Names of models in MLflow; no part of them can lead to another folder."""


def _is_model(name: str) -> str:
    if name.lower().startswith(("models:", "runs:")) and not REGISTERED.fullmatch(name):
        raise ValueError("is no model of MLflow; write models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID/model")
    return name


Model = Annotated[
    str, StringConstraints(min_length=1, max_length=300, pattern=r"^[!-~][ -~]*$"), AfterValidator(_is_model)
]
"""As ``score.py --model`` takes it."""


def _on_preset(values: Any) -> Any:
    """Settings of a training as a YAML file has them: changes to a preset."""
    if not isinstance(values, dict):
        return values
    preset = values.get("preset", "evidence")
    return merged(PRESETS[preset], values) if preset in list(PRESETS) else values


Training = Annotated[TrainSettings, BeforeValidator(_on_preset)]
"""Settings of a training: a preset and what is changed of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Look at a manifest and open every slide."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    kind: Literal["check"] = "check"
    manifest: Uri
    """CSV or Parquet, or a folder of slides."""
    need_labels: bool = False
    """True: as for a training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Train a MagNet."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    kind: Literal["train"] = "train"
    manifest: Uri
    """CSV or Parquet with labels."""
    settings: Training = field(default_factory=lambda: settings.train_settings(None))
    """Preset, model, recipe, compute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tune:
    """Search for good settings."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    kind: Literal["tune"] = "tune"
    manifest: Uri
    """CSV or Parquet with labels."""
    search: SearchSettings = field(default_factory=SearchSettings)
    """What is varied, and how often."""
    settings: Training = field(default_factory=lambda: settings.train_settings(None))
    """What all trials share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Score slides with a trained model."""

    __pydantic_config__: ClassVar[dict[str, str]] = CLOSED

    kind: Literal["score"] = "score"
    manifest: Uri
    """CSV or Parquet, or a folder of slides."""
    model: Model
    """models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model or a folder."""
    out: Uri | None = None
    """Folder of table and pictures; null: one in the service's storage."""
    outlines: Uri | None = None
    """Lesions, if they are known."""
    split: Literal["train", "val", "test"] | None = None
    """Only the slides of this split."""
    settings: ScoreSettings = field(default_factory=ScoreSettings)
    """Gate, frames, compute, pictures."""


Request = Annotated[Check | Train | Tune | Score, Field(discriminator="kind")]
"""A job, as data."""
ADAPTER: TypeAdapter[Check | Train | Tune | Score] = TypeAdapter(Request)


def to_json(request: Check | Train | Tune | Score) -> str:
    """A request in one canonical form.

    Raises:
        UsageError: a number is not finite, which JSON cannot hold.
    """
    try:
        return json.dumps(to_dict(request), sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise UsageError("a setting is not a finite number; write one that is") from error


def from_json(text: str) -> Check | Train | Tune | Score:
    """The request that `to_json` wrote."""
    return ADAPTER.validate_python(json.loads(text))


def read_places(request: Check | Train | Tune | Score) -> list[str]:
    """Everything that a request names to be read."""
    named = [request.manifest]
    if isinstance(request, Score):
        named += [] if request.outlines is None else [request.outlines]
        if not request.model.startswith(("models:/", "runs:/")):
            named.append(request.model)
    return named


def written_places(request: Check | Train | Tune | Score) -> list[str]:
    """Everything that a request names to be written."""
    return [request.out] if isinstance(request, Score) and request.out is not None else []


def weights_and_encoders(request: Check | Train | Tune | Score) -> tuple[list[str], list[str]]:
    """What the networks of a training are loaded from, and their names."""
    if not isinstance(request, Train | Tune):
        return [], []
    model = request.settings.model
    parts = (model.classifier, model.auxiliary)
    tried = request.search.encoder if isinstance(request, Tune) else ()
    encoders = [p.encoder for p in parts if p.encoder is not None]
    return [p.weights for p in parts if p.weights is not None], [*encoders, *tried]


def results_folder(request: Check | Train | Tune | Score, owner: str, job_id: str, service: ServiceSettings) -> str:
    """Where a scoring's table and pictures go."""
    out = request.out if isinstance(request, Score) else None
    return out or storage.join(service.job_folder(owner, job_id), "scores")


def settings_files(request: Check | Train | Tune | Score) -> dict[str, bytes]:
    """The files that the command is given, by name."""
    if isinstance(request, Check):
        return {}
    files = {"settings.yaml": request.settings} | ({"search.yaml": request.search} if isinstance(request, Tune) else {})
    return {name: yaml.safe_dump(to_dict(one), sort_keys=False).encode() for name, one in files.items()}


def words(request: Check | Train | Tune | Score, owner: str, job_id: str, service: ServiceSettings) -> list[str]:
    """The command of a job: the same for each attempt, which so goes on where the last one stopped."""
    command = [service.python, "-m", f"ray_jobs.{request.kind}", "--manifest", request.manifest]
    if isinstance(request, Check):
        return [*command, *(["--need-labels"] if request.need_labels else [])]
    folder = service.job_folder(owner, job_id)
    command += ["--config", storage.join(folder, "settings.yaml"), "--storage", service.runs(owner)]
    if isinstance(request, Score):
        command += ["--model", request.model, "--out", results_folder(request, owner, job_id, service)]
        for option, value in (("--split", request.split), ("--outlines", request.outlines)):
            command += [option, value] if value is not None else []
        return command
    command += ["--name", job_id]
    if isinstance(request, Tune):
        command += ["--search", storage.join(folder, "search.yaml")]
    return command
