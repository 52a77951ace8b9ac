"""The task of a search: what the driver sends to each trial; and the files in which trials leave their outcomes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray_jobs.models import checkpoints
from ray_jobs.models.checkpoint_store import CheckpointStore
from ray_jobs.tuning.pareto import Outcome
from service import storage
from service.cohort.manifest import Manifest
from service.settings.parsing import flatten, to_dict
from service.settings.train import TrainSettings
from service.settings.tune import SearchSettings, make_trial_settings

VALUES_FILE, OUTCOME_FILE = "chosen.json", "outcome.json"
"""Files in a trial's folder: the values that it trains with; and its outcome, once it has ended by itself."""

Values = dict[str, Any]
"""Values that Ray Tune selected for a trial, by name."""


@dataclass(frozen=True, slots=True)
class SearchTask:
    """A search."""

    name: str
    """Name of the job."""
    base: TrainSettings
    """Settings of the training that the search varies."""
    settings: SearchSettings
    """Settings of the search."""
    manifest: Manifest
    """Checked slides, with splits."""
    tracking_uri: str
    """URI of the MLflow server or database."""
    parent_run: str
    """Id of the search's run in MLflow; each trial has a child run."""
    storage: str
    """Folder of the runs, a path or URI."""

    def folder(self, trial: str) -> str:
        """Return the folder of a trial."""
        return storage.join(self.storage, f"{self.name}/trials/{trial}")

    def run_name(self, trial: str) -> str:
        """Return the name of a trial's run in MLflow, by which a restarted trial finds it."""
        return f"{self.name}-{trial}"

    def parameters(self, settings: TrainSettings) -> dict[str, Any]:
        """Return the parameters of a run: those of a training, and depth and patches that follow from a schedule."""
        zoom = settings.model.zoom
        manifest = {"manifest": self.manifest.uri, "manifest_sha256": self.manifest.sha256}
        return flatten(to_dict(settings)) | manifest | {"depth": zoom.num_layers, "num_patches": zoom.num_patches}


def write_values(task: SearchTask, trial: str, values: Values) -> None:
    """Store the values that a trial trains with."""
    storage.write_bytes(storage.join(task.folder(trial), VALUES_FILE), json.dumps(values).encode())


def read_settings(task: SearchTask, trial: str) -> TrainSettings:
    """Return the settings of a trial that has started."""
    values = json.loads(storage.read_bytes(storage.join(task.folder(trial), VALUES_FILE)))
    return make_trial_settings(task.base, values)


def write_outcome(task: SearchTask, outcome: Outcome, values: Values) -> None:
    """Store how a trial ended, with its values."""
    # In the files the values of a trial are called "chosen".
    content = {"chosen": values, "outcome": asdict(outcome)}
    uri = storage.join(task.folder(outcome.trial), OUTCOME_FILE)
    storage.write_bytes(uri, json.dumps(content, indent=2).encode())


def read_outcome(task: SearchTask, trial: str) -> Outcome | None:
    """Return how a trial ended by itself; None if it did not."""
    uri = storage.join(task.folder(trial), OUTCOME_FILE)
    return Outcome(**json.loads(storage.read_bytes(uri))["outcome"]) if storage.exists(uri) else None


def find_outcome(task: SearchTask, values: Values) -> Outcome | None:
    """Return the outcome of a trial that had the same values; None if no such trial has ended by itself."""
    for uri in storage.list_uris(storage.join(task.storage, f"{task.name}/trials")):
        if storage.name(uri) == OUTCOME_FILE:
            content = json.loads(storage.read_bytes(uri))
            if content["chosen"] == values:
                return Outcome(**content["outcome"])
    return None


def make_outcome(task: SearchTask, trial: str, settings: TrainSettings, status: str, reason: str) -> Outcome:
    """Return the outcome of a trial with the metrics of its best epoch, if it completed one.

    Args:
        task: the search.
        trial: id of the trial.
        settings: settings of the trial.
        status: how it ended, see `Outcome.status`.
        reason: why it ended so; empty if it is complete.
    """
    zoom = settings.model.zoom
    outcome = Outcome(trial, ",".join(map(str, zoom.schedule)), zoom.num_patches, status, reason)
    store = CheckpointStore(task.folder(trial))
    if (best := store.find_best()) is None or best.selection is None:
        return outcome
    with TemporaryDirectory() as name:  # only the description is read, not the weights
        store.fetch(best, Path(name), [checkpoints.SETTINGS_FILE])
        metrics = checkpoints.read_info(Path(name)).metrics
    auroc, bytes_per_slide = metrics["val/auroc"], metrics["val/bytes_per_slide"]
    objective = task.settings.compute_objective(auroc, bytes_per_slide)
    return replace(outcome, auroc=auroc, bytes_per_slide=bytes_per_slide, objective=objective)
