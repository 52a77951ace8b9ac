"""Requests: jobs of four kinds as data, and the command that runs each.

The settings are those of YAML files and command lines, and are checked in the same way; unknown keys are refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, TypeAdapter

from magnet.config import FORBID_EXTRA
from magnet.presets import PRESETS
from service import storage
from service.errors import UsageError
from service.queue.kinds import KINDS as KINDS
from service.settings import train as settings
from service.settings.parsing import merge_settings, to_dict
from service.settings.score import ScoreSettings
from service.settings.service import ServiceSettings
from service.settings.train import TrainSettings
from service.settings.tune import SearchSettings

Uri = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f\s][^\x00-\x1f\x7f]*$")]
"""A path or URI: one line."""
REGISTERED = re.compile(
    r"models:/[^/@:\\]+(@[A-Za-z0-9_.-]+|/[0-9]+)|runs:/[0-9a-f]{32}(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+"
)
"""Names of models in MLflow; no part of them can lead to another folder, as ".." would."""


def _require_model(name: str) -> str:
    if name.lower().startswith(("models:", "runs:")) and not REGISTERED.fullmatch(name):
        raise ValueError(
            "is not a name of a model in MLflow; write models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID/model"
        )
    return name


Model = Annotated[
    str, StringConstraints(min_length=1, max_length=300, pattern=r"^[!-~][ -~]*$"), AfterValidator(_require_model)
]
"""Name of a model, as ``score.py --model`` takes it."""


def _apply_to_preset(values: Any) -> Any:
    """Return settings of a training with all values; a request, like a YAML file, has only changes to a preset."""
    if not isinstance(values, dict):
        return values
    preset = values.get("preset", "evidence")
    # In the list rather than the dict: the value comes from JSON and may be unhashable. Validation refuses such values.
    return merge_settings(PRESETS[preset], values) if preset in list(PRESETS) else values


Training = Annotated[TrainSettings, BeforeValidator(_apply_to_preset)]
"""Settings of a training: a preset and the changes to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Check a manifest, and open every slide."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    kind: Literal["check"] = "check"
    manifest: Uri
    """Path or URI of a CSV or Parquet file, or of a folder of slides."""
    need_labels: bool = False
    """True: every slide must have a label, as for a training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Train a MagNet."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    kind: Literal["train"] = "train"
    manifest: Uri
    """Path or URI of a CSV or Parquet file with labels."""
    settings: Training = field(default_factory=lambda: settings.read_train_settings(None))
    """Settings of preset, model, recipe and compute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tune:
    """Search for good settings."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    kind: Literal["tune"] = "tune"
    manifest: Uri
    """Path or URI of a CSV or Parquet file with labels."""
    search: SearchSettings = field(default_factory=SearchSettings)
    """Values to try, and number of trials."""
    settings: Training = field(default_factory=lambda: settings.read_train_settings(None))
    """Settings that all trials share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Score slides with a trained model."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    kind: Literal["score"] = "score"
    manifest: Uri
    """Path or URI of a CSV or Parquet file, or of a folder of slides."""
    model: Model
    """Name of the model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/model or a folder."""
    out: Uri | None = None
    """Folder of the results; null: a folder in the service's storage."""
    outlines: Uri | None = None
    """Path or URI of outlines of lesions, if they are known."""
    split: Literal["train", "val", "test"] | None = None
    """Split whose slides are scored; null: all slides."""
    settings: ScoreSettings = field(default_factory=ScoreSettings)
    """Settings of gate, frames, compute and pictures."""


Request = Annotated[Check | Train | Tune | Score, Field(discriminator="kind")]
"""A job, as data."""
ADAPTER: TypeAdapter[Check | Train | Tune | Score] = TypeAdapter(Request)


def to_json(request: Check | Train | Tune | Score) -> str:
    """Return a request in a canonical form: equal requests give equal texts.

    Raises:
        UsageError: a number is not finite, which JSON cannot represent.
    """
    try:
        return json.dumps(to_dict(request), sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise UsageError("a setting is infinite or not a number; write a finite number") from error


def from_json(text: str) -> Check | Train | Tune | Score:
    """Return the request that `to_json` wrote. Raises `ValueError` if the text is malformed."""
    return ADAPTER.validate_python(json.loads(text))


def read_places(request: Check | Train | Tune | Score) -> list[str]:
    """Return the places that a request names to be read."""
    places = [request.manifest]
    if isinstance(request, Score):
        places += [] if request.outlines is None else [request.outlines]
        if not request.model.startswith(("models:/", "runs:/")):
            places.append(request.model)
    return places


def written_places(request: Check | Train | Tune | Score) -> list[str]:
    """Return the places that a request names to be written."""
    return [request.out] if isinstance(request, Score) and request.out is not None else []


def weights_and_encoders(request: Check | Train | Tune | Score) -> tuple[list[str], list[str]]:
    """Return the names of the weights that a training loads, and those of its encoders."""
    if not isinstance(request, Train | Tune):
        return [], []
    model = request.settings.model
    parts = (model.classifier, model.auxiliary)
    tried = request.search.encoder if isinstance(request, Tune) else ()
    encoders = [p.encoder for p in parts if p.encoder is not None]
    return [p.weights for p in parts if p.weights is not None], [*encoders, *tried]


def results_folder(request: Check | Train | Tune | Score, owner: str, job_id: str, service: ServiceSettings) -> str:
    """Return the folder of a scoring's results.

    Args:
        request: the job.
        owner: its user.
        job_id: its id.
        service: settings of the service.
    """
    out = request.out if isinstance(request, Score) else None
    return out or storage.join(service.job_folder(owner, job_id), "scores")


def settings_files(request: Check | Train | Tune | Score) -> dict[str, bytes]:
    """Return the content of the files that the command reads, by name."""
    if isinstance(request, Check):
        return {}
    files = {"settings.yaml": request.settings} | ({"search.yaml": request.search} if isinstance(request, Tune) else {})
    return {name: yaml.safe_dump(to_dict(values), sort_keys=False).encode() for name, values in files.items()}


def build_command(
    request: Check | Train | Tune | Score, owner: str, job_id: str, service: ServiceSettings
) -> list[str]:
    """Return the command of a job as a list of arguments.

    It is the same for each attempt, so that an attempt continues where the last one stopped.

    Args:
        request: the job.
        owner: its user.
        job_id: its id.
        service: settings of the service.
    """
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
    # By this name a later attempt finds the checkpoints. A scoring finds its earlier results in --out.
    command += ["--name", job_id]
    if isinstance(request, Tune):
        command += ["--search", storage.join(folder, "search.yaml")]
    return command
