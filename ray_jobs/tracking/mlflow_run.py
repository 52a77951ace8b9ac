"""The record of a job in MLflow: one run per job, written by one process at a time.

Without MLFLOW_TRACKING_URI the tracking store is an SQLite file in the storage folder.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import DatasetInput, InputTag, Param, RunTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from ray_jobs.command_line import paths
from ray_jobs.tracking.outbox import UNREACHABLE_ERRORS, Outbox
from ray_jobs.tracking.provenance import environment_tags
from service.cohort.manifest import Manifest
from service.errors import MagnetError, UsageError

log = logging.getLogger(__name__)
# Alembic logs each of the many migrations when MLflow creates an SQLite store.
logging.getLogger("alembic").setLevel(logging.WARNING)

MAX_PARAMS = 100
"""Maximum number of parameters that MLflow accepts in one request."""

MAY_CHANGE = "compute."
"""Prefix of the settings that may differ between the attempts of a job: they change no result."""


class MlflowUnavailableError(MagnetError):
    """MLflow is unreachable where a job cannot do without it. To act: its operator. A retry can help."""


def tracking_uri(storage: str) -> str:
    """Return where runs are recorded: MLFLOW_TRACKING_URI, or an SQLite file in the storage folder.

    SQLite needs a file system. If `storage` is in a bucket, the file is in the folder that MAGNET_STORAGE names, or in
    the user's home.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    places = (storage, paths.storage_folder(None), paths.to_absolute(paths.HOME_RUNS))
    folder = next(place for place in places if "://" not in place)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{Path(folder).resolve()}/mlflow.db"


def start_run(uri: str, *, experiment: str, name: str, storage: str) -> tuple[str, bool]:
    """Create the run of a job, or find the one that an earlier attempt with the same name created.

    Args:
        uri: tracking URI of MLflow.
        experiment: name of the experiment; it is created if it does not exist.
        name: name of the job.
        storage: folder of the runs, a path or URI.

    Returns:
        The run's id, and whether an earlier attempt has finished the job.

    Raises:
        RecordError: MLflow is unreachable.
    """
    try:
        return _start_run(MlflowClient(tracking_uri=uri), experiment, name, storage)
    except UNREACHABLE_ERRORS as error:
        raise MlflowUnavailableError(f"MLflow at {uri} is unreachable, nothing was started: {error}") from error


def _start_run(client: MlflowClient, experiment: str, name: str, storage: str) -> tuple[str, bool]:
    existing = client.get_experiment_by_name(experiment)
    # An SQLite store would put artifacts into the process's working folder, which under Ray is a temporary one.
    place = f"{storage}/artifacts" if client.tracking_uri.startswith("sqlite:") else None
    experiment_id = (
        existing.experiment_id if existing else client.create_experiment(experiment, artifact_location=place)
    )
    earlier = client.search_runs([experiment_id], f"tags.magnet_job = '{name}'", max_results=1)
    if earlier:
        return earlier[0].info.run_id, earlier[0].info.status == "FINISHED"
    tags = {"magnet_job": name, **environment_tags()}
    return client.create_run(experiment_id, run_name=name, tags=tags).info.run_id, False


class Tracker:
    """Writes to one run.

    `metrics`, `note_tags` and `note_text` put entries into an outbox, which `send` and `flush` deliver and `keep` saves
    to a file: they work while MLflow is unreachable. The other methods call MLflow at once and raise its errors.

    Args:
        uri: tracking URI of MLflow.
        run_id: id of the run.
        folder: the job's folder, a path or URI, where unsent metrics are saved; None: they are not saved.
    """

    def __init__(self, uri: str, run_id: str, folder: str | None = None) -> None:
        self.uri, self.run_id = uri, run_id
        self.client = MlflowClient(tracking_uri=uri)
        self.outbox = Outbox(self.client, run_id, folder)

    # ------------------------------------------------------------------------------------------- through the outbox

    def load_outbox(self) -> None:
        """Take over the metrics that an earlier attempt could not send."""
        self.outbox.load()

    def log_metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Add metrics of a step or of an epoch.

        A metric's name belongs to one of the two, and its steps increase. A step that an earlier attempt logged is not
        logged again.
        """
        self.outbox.add_metrics(values, step=step)

    def add_tags(self, values: Mapping[str, str]) -> None:
        """Add tags."""
        self.outbox.add_tags(values)

    def add_text(self, text: str, path: str) -> None:
        """Add the content of an artifact."""
        self.outbox.add_text(text, path)

    def send_in_background(self) -> None:
        """Send the outbox in the background, unless that was done a moment ago."""
        self.outbox.send()

    def flush(self) -> bool:
        """Send the outbox now. Returns False if MLflow is unreachable."""
        return self.outbox.flush()

    def flush_patiently(self, patience_s: float) -> bool:
        """Send the outbox, and retry for up to `patience_s` seconds. Returns False if MLflow stays unreachable."""
        return self.outbox.flush_patiently(patience_s)

    def consume_recovery(self) -> bool:
        """Return whether MLflow became reachable again since the last call."""
        return self.outbox.recovered()

    def save_outbox(self) -> None:
        """Send the outbox, or after a few seconds save it where the next attempt finds it."""
        self.outbox.save()

    # ------------------------------------------------------------------------------------------------------ at once

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log settings as parameters. Settings that change no result keep the value of the first attempt.

        Raises:
            UsageError: an earlier attempt of the same job had other settings.
        """
        earlier = self.client.get_run(self.run_id).data.params
        # MLflow stores parameters as text, and refuses to change one.
        changes = [
            f"{k} = {v} (was {earlier[k]})"
            for k, v in values.items()
            if earlier.get(k, str(v)) != str(v) and not k.startswith(MAY_CHANGE)
        ]
        if changes:
            raise UsageError(
                f"an earlier attempt of this job had other settings: {', '.join(changes)}. A job cannot change its "
                f"settings; undo the change, or start a new job with another --name"
            )
        params = [Param(name, str(value)) for name, value in values.items() if name not in earlier]
        for i in range(0, len(params), MAX_PARAMS):
            self.client.log_batch(self.run_id, params=params[i : i + MAX_PARAMS])

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in values.items()])

    def log_datasets(self, manifest: Manifest) -> None:
        """Log the training and the validation slides as the run's inputs, by the manifest's name, URI and digest."""
        frame = manifest.to_frame()
        for context in ("train", "val"):
            part = frame[frame["split"] == context]
            if len(part):
                name = f"{Path(manifest.uri).stem}-{context}"
                # MLflow warns that it guesses the kind of source, and that integer columns cannot hold missing values.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    dataset = from_pandas(part, source=manifest.uri, name=name)._to_mlflow_entity()
                dataset_input = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
                self.client.log_inputs(self.run_id, datasets=[dataset_input])

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as an artifact."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def log_figure(self, figure: Figure, path: str) -> None:
        """Log a figure as an artifact."""
        self.client.log_figure(self.run_id, figure, path)

    def begin(self) -> None:
        """Set the run's status to RUNNING, also after an attempt that failed."""
        self.client.update_run(self.run_id, status="RUNNING")

    def end(self, status: str) -> None:
        """Send the outbox and set the run's status to FINISHED, FAILED or KILLED, if MLflow is reachable."""
        self.outbox.close()
        try:
            self.client.set_terminated(self.run_id, status=status)
        except UNREACHABLE_ERRORS as error:
            log.warning("MLflow at %s is unreachable; the run's status %s was not set: %s", self.uri, status, error)


class SystemMetrics:
    """Logs the load of this machine (CPU, memory, disk, network, GPUs) to the run while the context lasts.

    Args:
        tracker: the run; None: nothing is logged.
    """

    def __init__(self, tracker: Tracker | None) -> None:
        self.tracker = tracker
        self._monitor: SystemMetricsMonitor | None = None

    def __enter__(self) -> SystemMetrics:
        self.renew()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._monitor is not None:
            self._monitor.finish()

    def renew(self) -> None:
        """Start the monitor, or restart it: MLflow's monitor ends for good when one request fails."""
        if self.tracker is None:
            return
        if self._monitor is not None:
            self._monitor.finish()
        # `resume_logging` continues the steps of an earlier monitor, as of an earlier attempt.
        self._monitor = SystemMetricsMonitor(
            self.tracker.run_id, tracking_uri=self.tracker.uri, resume_logging=True, sampling_interval=5
        )
        self._monitor.start()
