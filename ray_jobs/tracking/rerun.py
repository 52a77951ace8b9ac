"""A run of MLflow, repeated: the same settings, the same manifest, the same seed, as a job of its own."""

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
from service.settings.train import TrainSettings, train_settings

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
"""Artifact with all settings of a run."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run says of how it was made."""

    settings: TrainSettings
    manifest: str
    """Path or URI."""
    manifest_sha256: str

    def require_same_manifest(self, uri: str, sha256: str) -> None:
        """Refuse a manifest that is not the run's.

        Raises:
            UsageError: its content differs.
        """
        if sha256 != self.manifest_sha256:
            raise UsageError(
                f"the manifest has changed since: SHA-256 {sha256}, the run had {self.manifest_sha256}; a rerun needs "
                f"the same one, name a copy of it with --manifest",
                uri=uri,
            )


def recorded(tracking_uri: str, run_id: str, overrides: Sequence[str] = ()) -> Recorded:
    """Settings and manifest of a run.

    Args:
        tracking_uri: of MLflow.
        run_id: the run.
        overrides: ``compute.key=value``, which change no result.

    Raises:
        UsageError: there is no such run, it is none of `train.py`, or an override would change the result.
    """
    client = MlflowClient(tracking_uri=tracking_uri)
    try:
        run = client.get_run(run_id)
        with tempfile.TemporaryDirectory() as folder:
            config = client.download_artifacts(run_id, CONFIG_FILE, folder)
            settings, same = train_settings(config, overrides), train_settings(config)
        manifest, sha256 = run.data.params["manifest"], run.data.params["manifest_sha256"]
    except (MlflowException, OSError, KeyError) as error:
        raise UsageError(
            f"--rerun {run_id}: no training with its settings is kept under this id in {tracking_uri} ({error}); "
            f"copy the run's id from MLflow, and set MLFLOW_TRACKING_URI or --storage to where it was trained"
        ) from error
    if replace(settings, compute=same.compute) != same:
        raise UsageError(f"--rerun {run_id}: only compute.* may be set, anything else makes another training")
    _warn_of_other_code(run.data.tags)
    return Recorded(settings, manifest, sha256)


def _warn_of_other_code(tags: dict[str, str]) -> None:
    names = ("mlflow.source.git.commit", "mlflow.source.git.dirty")
    then, now = [tags.get(name, "unknown") for name in names], list(git_tags(Path(__file__).parent).values())
    if then != now or now[1] == "true":
        log.warning(
            "the run was made by commit %s (changed: %s), this is %s (changed: %s); results may differ", *then, *now
        )
