"""Repeating a run of MLflow: the same settings, manifest and seed, as a new job."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ray_jobs.tracking.provenance import git_tags
from service.errors import UsageError
from service.settings.train import TrainSettings, read_train_settings

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
"""Artifact with all settings of a run."""


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """Settings and manifest of a run, as MLflow holds them."""

    settings: TrainSettings
    """Settings of the training."""
    manifest: str
    """Path or URI of the manifest."""
    manifest_sha256: str
    """SHA-256 of the manifest's content."""

    def require_same_manifest(self, uri: str, sha256: str) -> None:
        """Refuse a manifest whose content differs from that of the run.

        Args:
            uri: path or URI of the manifest to train with.
            sha256: digest of its content.

        Raises:
            UsageError: the content differs.
        """
        if sha256 != self.manifest_sha256:
            raise UsageError(
                f"the manifest has changed since the run: its SHA-256 is {sha256}, the run's was "
                f"{self.manifest_sha256}; a rerun needs the same manifest: name a copy of it with --manifest",
                uri=uri,
            )


def read_run(tracking_uri: str, run_id: str, overrides: Sequence[str] = ()) -> RecordedRun:
    """Read settings and manifest of a run from MLflow.

    Args:
        tracking_uri: tracking URI of MLflow.
        run_id: id of the run.
        overrides: ``compute.key=value``; other settings would change the result.

    Raises:
        UsageError: there is no such run, `train.py` did not create it, or an override would change the result.
    """
    client = MlflowClient(tracking_uri=tracking_uri)
    try:
        run = client.get_run(run_id)
        with tempfile.TemporaryDirectory() as folder:
            config = client.download_artifacts(run_id, CONFIG_FILE, folder)
            settings, same = read_train_settings(config, overrides), read_train_settings(config)
        manifest, sha256 = run.data.params["manifest"], run.data.params["manifest_sha256"]
    except (MlflowException, OSError, KeyError) as error:
        raise UsageError(
            f"--rerun {run_id}: {tracking_uri} holds no training with this run id ({error}); copy the id from MLflow, "
            f"and set MLFLOW_TRACKING_URI or --storage to the values of that training"
        ) from error
    if replace(settings, compute=same.compute) != same:
        raise UsageError(f"--rerun {run_id}: only compute.* may be set; other settings would change the result")
    _warn_of_other_code(run.data.tags)
    return RecordedRun(settings, manifest, sha256)


def _warn_of_other_code(tags: dict[str, str]) -> None:
    names = ("mlflow.source.git.commit", "mlflow.source.git.dirty")
    then, now = [tags.get(name, "unknown") for name in names], list(git_tags(Path(__file__).parent).values())
    # Two working copies with uncommitted changes can differ although commit and flag are the same.
    if then != now or now[1] == "true":
        log.warning(
            "the run used commit %s (uncommitted changes: %s), this code is commit %s (uncommitted changes: %s); "
            "results may differ",
            *then,
            *now,
        )
