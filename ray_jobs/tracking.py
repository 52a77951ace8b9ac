"""The record of a job in MLflow: one run per job, written by one process at a time.

Without MLFLOW_TRACKING_URI the store is an SQLite file beside the runs. A tracking server that is away stops nothing:
what could not be sent is kept and sent with the next metrics.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from ray_jobs import command
from service.errors import UsageError

log = logging.getLogger(__name__)
logging.getLogger("alembic").setLevel(logging.WARNING)

PACKAGES = ("torch", "timm", "ray", "mlflow", "numpy", "imagecodecs", "obstore", "openslide-python")
"""Whose versions are recorded."""

MAX_BATCH = 1000
"""Metrics that MLflow takes in one call."""


def tracking_uri(storage: str) -> str:
    """Where runs are recorded: MLFLOW_TRACKING_URI, or an SQLite file in the storage folder.

    SQLite needs a file system: with storage in a bucket the file lies where MAGNET_STORAGE says, or in the user's home.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    places = (storage, command.storage_folder(None), command.absolute(command.HOME_RUNS))
    folder = next(place for place in places if "://" not in place)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{Path(folder).resolve()}/mlflow.db"


def start_run(uri: str, *, experiment: str, name: str, storage: str) -> tuple[str, bool]:
    """Make the run of a job, or find the one that an earlier attempt of the same name made.

    Returns:
        Its id, and whether that attempt brought the job to its end.
    """
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    # An SQLite store would put artifacts into the process's working folder, which under Ray is a temporary one.
    place = f"{storage}/artifacts" if uri.startswith("sqlite:") else None
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, artifact_location=place)
    earlier = client.search_runs([experiment_id], f"tags.magnet_job = '{name}'", max_results=1)
    if earlier:
        return earlier[0].info.run_id, earlier[0].info.status == "FINISHED"
    tags = {"magnet_job": name, **environment_tags()}
    return client.create_run(experiment_id, run_name=name, tags=tags).info.run_id, False


def environment_tags() -> dict[str, str]:
    """Code, versions, machine and Ray job of this process."""
    tags = {f"version.{name}": version(name) for name in PACKAGES}
    tags |= {"python": platform.python_version(), "host": platform.node(), "mlflow.user": os.environ.get("USER", "")}
    tags |= {"mlflow.source.name": " ".join(sys.argv), "mlflow.source.type": "JOB"}
    if job := json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {}):
        tags["ray_job"] = job.get("job_submission_id", "")
    return tags | git_tags(Path(__file__).resolve().parents[1])


def git_tags(folder: Path) -> dict[str, str]:
    """The commit that a folder is at, and whether it was changed; MAGNET_GIT_COMMIT where git cannot tell."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = bool(_git(folder, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        commit, dirty = os.environ.get("MAGNET_GIT_COMMIT", "unknown"), False
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(dirty).lower()}


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


class Tracker:
    """Writes into one run. Failures to reach MLflow are logged, and what was to be written is kept for later."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self.client = MlflowClient(tracking_uri=uri)
        self._pending: list[Metric] = []
        self._last_step = 0

    def resume(self) -> None:
        """Go on after an attempt that died: what it logged past its last checkpoint is not logged a second time."""
        try:
            logged = self.client.get_metric_history(self.run_id, "step")
        except MlflowException as error:
            log.warning("MLflow did not tell which metrics it has, some may be logged twice: %s", error)
            return
        self._last_step = max((point.step for point in logged), default=0)

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Note metrics of a step (an epoch's number), unless an earlier attempt logged that; `flush` sends them."""
        if step <= self._last_step:
            return
        now = int(time.time() * 1000)
        self._pending += [Metric(name, float(value), now, step) for name, value in values.items()]

    def flush(self) -> bool:
        """Send what is pending; False if MLflow could not be reached."""
        while self._pending:
            try:
                self.client.log_batch(self.run_id, metrics=self._pending[:MAX_BATCH], synchronous=True)
            except MlflowException as error:
                log.warning("MLflow did not take %d metrics, kept for later: %s", len(self._pending), error)
                return False
            del self._pending[:MAX_BATCH]
        return True

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings, flat.

        Raises:
            UsageError: an earlier attempt of the same job had others.
        """
        earlier = self.client.get_run(self.run_id).data.params
        changes = [f"{k} = {v} (was {earlier[k]})" for k, v in values.items() if earlier.get(k, str(v)) != str(v)]
        if changes:
            raise UsageError(
                f"this job began with other settings: {', '.join(changes)}. A job goes on as it began; "
                f"take back the change, or give the new job a --name of its own"
            )
        params = [Param(name, str(value)) for name, value in values.items()]
        for i in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[i : i + 100])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in values.items()])

    def dataset(self, frame: pd.DataFrame, *, source: str, name: str, context: str) -> None:
        """Note a table that went into the run, by name, source and digest."""
        with warnings.catch_warnings():  # about guesses that do no harm: kind of source, integers without gaps
            warnings.simplefilter("ignore")
            dataset = from_pandas(frame, source=source, name=name)._to_mlflow_entity()
        used = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        self.client.log_inputs(self.run_id, datasets=[used])

    def file(self, path: Path, folder: str | None = None) -> None:
        """Keep a file as an artifact."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def begin(self) -> None:
        """Open the run, also again after an attempt that failed."""
        self.client.update_run(self.run_id, status="RUNNING")

    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self.flush()
        self.client.set_terminated(self.run_id, status=status)


class SystemMetrics:
    """Logs the load of this machine (CPU, memory, disk, network, GPUs) into the run while the context lasts."""

    def __init__(self, tracker: Tracker | None) -> None:
        self.tracker = tracker
        self._monitor: SystemMetricsMonitor | None = None

    def __enter__(self) -> SystemMetrics:
        if self.tracker is not None:
            self._monitor = SystemMetricsMonitor(
                self.tracker.run_id, tracking_uri=self.tracker.uri, resume_logging=True, sampling_interval=5
            )
            self._monitor.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._monitor is not None:
            self._monitor.finish()
