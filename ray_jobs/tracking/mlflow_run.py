"""The record of a job in MLflow: one run per job, written by one process at a time.

Without MLFLOW_TRACKING_URI the store is an SQLite file beside the runs. A tracking server that is away stops nothing:
notes are sent from a thread of their own, and what could not be sent lies in a file of the job's storage folder, from
which this attempt or a later one sends it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from ray_jobs.command_line import command
from ray_jobs.tracking.outbox import Points, Unsent
from ray_jobs.tracking.provenance import environment_tags
from service import storage
from service.cohort.manifest import Manifest
from service.errors import MagnetError, UsageError

log = logging.getLogger(__name__)
logging.getLogger("alembic").setLevel(logging.WARNING)

MAX_BATCH = 1000
"""Metrics that MLflow takes in one call."""

UNSENT_FILE = "unsent-metrics.jsonl"
"""In the job's folder: what MLflow has not taken yet."""

SEND_EVERY_S, RETRY_EVERY_S = 5.0, 30.0
"""Seconds between two messages to MLflow, and between two attempts while it is away."""

MAY_CHANGE = "compute."
"""Settings with this prefix may differ between the attempts of a job."""

KEEP_S = 5.0
"""Seconds that a checkpoint waits for MLflow before notes are put into the file."""

AWAY = (MlflowException, OSError, Boto3Error, BotoCoreError, ClientError)
"""What MLflow's client raises if the server, its database or its artifact store cannot be had."""


class RecordError(MagnetError):
    """MLflow cannot be had where a job cannot do without it. To act: its operator. A retry can help."""


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

    Raises:
        RecordError: MLflow is away.
    """
    try:
        return _start_run(MlflowClient(tracking_uri=uri), experiment, name, storage)
    except AWAY as error:
        raise RecordError(f"MLflow at {uri} cannot be had, nothing was started: {error}") from error


def _start_run(client: MlflowClient, experiment: str, name: str, storage: str) -> tuple[str, bool]:
    found = client.get_experiment_by_name(experiment)
    # An SQLite store would put artifacts into the process's working folder, which under Ray is a temporary one.
    place = f"{storage}/artifacts" if client.tracking_uri.startswith("sqlite:") else None
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, artifact_location=place)
    earlier = client.search_runs([experiment_id], f"tags.magnet_job = '{name}'", max_results=1)
    if earlier:
        return earlier[0].info.run_id, earlier[0].info.status == "FINISHED"
    tags = {"magnet_job": name, **environment_tags()}
    return client.create_run(experiment_id, run_name=name, tags=tags).info.run_id, False


class Tracker:
    """Writes into one run.

    `metrics`, `note_tags` and `note_text` only take notes, which `send` and `flush` deliver and `keep` puts into a
    file; the other methods speak to MLflow at once and raise where it is away.

    Args:
        uri: of MLflow.
        run_id: the run.
        folder: of the job, a path or URI; where unsent notes are kept. None: nowhere.
    """

    def __init__(self, uri: str, run_id: str, folder: str | None = None) -> None:
        self.uri, self.run_id = uri, run_id
        self.client = MlflowClient(tracking_uri=uri)
        self.unsent_uri = None if folder is None else storage.join(folder, UNSENT_FILE)
        self.away = False
        """Whether the last attempt to send failed."""
        self._unsent, self._changing = Unsent(), threading.Lock()
        self._sending = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._sent: Future[bool] | None = None
        self._next_s = 0.0
        self._logged: dict[str, int] | None = None
        self._kept = self._recovered = False

    def resume(self) -> None:
        """Take over what an earlier attempt could not send."""
        if self.unsent_uri is None:
            return
        try:
            if storage.exists(self.unsent_uri):
                self._unsent, self._kept = Unsent.from_bytes(storage.read_bytes(self.unsent_uri)), True
        except (MagnetError, ValueError, TypeError, KeyError) as error:
            log.warning("notes for MLflow that an earlier attempt left are lost: %s", error)

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Note metrics of a step, or of an epoch.

        A name belongs to one of the two, and its steps grow. What an earlier attempt logged is not logged again.
        """
        numbers = {name: float(value) for name, value in values.items()}
        with self._changing:
            if self._unsent.lacks(numbers, step):  # else an earlier attempt noted it, and could not send it
                self._unsent.points.append(Points(step, int(time.time() * 1000), numbers))

    def note_tags(self, values: Mapping[str, str]) -> None:
        """Note tags."""
        with self._changing:
            self._unsent.tags.update(values)

    def note_text(self, text: str, path: str) -> None:
        """Note an artifact's content."""
        with self._changing:
            self._unsent.texts[path] = text

    def send(self) -> None:
        """Send what is noted, in a thread of its own, unless that was done a moment ago."""
        if time.monotonic() >= self._next_s and (self._sent is None or self._sent.done()):
            self._next_s = time.monotonic() + (RETRY_EVERY_S if self.away else SEND_EVERY_S)
            self._sent = self._thread.submit(self.flush)

    def flush(self) -> bool:
        """Send what is noted; False if MLflow could not be had, and it is kept for later."""
        with self._sending:
            try:
                self._deliver()
            except AWAY as error:
                if not self.away:
                    log.warning("MLflow at %s is away, notes are kept and the job goes on: %s", self.uri, error)
                self.away, self._logged = True, None  # a message may have arrived and its answer got lost
                return False
            if self.away:
                log.warning("MLflow at %s is back and has all notes", self.uri)
                self.away, self._recovered = False, True
            return True

    def flush_patiently(self, patience_s: float) -> bool:
        """Send what is noted, waiting for MLflow where it is away; False if it stays away."""
        end_s = time.monotonic() + patience_s
        while not self.flush():
            if time.monotonic() + 1 > end_s:
                return False
            time.sleep(1)
        self.keep()
        return True

    def recovered(self) -> bool:
        """Whether MLflow was away and has come back since this was asked last."""
        recovered, self._recovered = self._recovered, False
        return recovered

    def keep(self) -> None:
        """Send what is noted, or after a few seconds put it where the next attempt finds it."""
        wait([self._thread.submit(self.flush)], timeout=KEEP_S)
        with self._changing:
            data = self._unsent.to_bytes()
        try:
            if self.unsent_uri is not None and (data or self._kept):
                if data:
                    storage.write_bytes(self.unsent_uri, data)
                else:
                    storage.delete(self.unsent_uri)
                self._kept = bool(data)
        except MagnetError as error:
            log.warning("notes for MLflow are in memory only: %s", error)

    def _deliver(self) -> None:
        if self._unsent and self._logged is None:
            # The newest step of each metric, in one request. The public history of a long run is megabytes.
            newest = self.client.get_run(self.run_id).data._metric_objs
            self._logged = {metric.key: metric.step for metric in newest}
        while batch := self._next_points():
            metrics = [Metric(name, value, p.time_ms, p.step) for p in batch for name, value in p.values.items()]
            if metrics:
                self.client.log_batch(self.run_id, metrics=metrics, synchronous=True)
            with self._changing:
                del self._unsent.points[: len(batch)]
        for name, value in list(self._unsent.tags.items()):
            self.client.set_tag(self.run_id, name, value)
            with self._changing:
                if self._unsent.tags.get(name) == value:
                    del self._unsent.tags[name]
        for path, text in list(self._unsent.texts.items()):
            self.client.log_text(self.run_id, text, path)
            with self._changing:
                if self._unsent.texts.get(path) == text:
                    del self._unsent.texts[path]

    def _next_points(self) -> list[Points]:
        """As many as one message takes, each whole; those that MLflow has are dropped."""
        assert self._logged is not None or not self._unsent.points
        with self._changing:
            logged = self._logged or {}
            points = self._unsent.points
            points[:] = [p for p in points if all(logged.get(name, -1) < p.step for name in p.values)]
            num, size = 0, 0
            while num < len(points) and (num == 0 or size + len(points[num].values) <= MAX_BATCH):
                size += len(points[num].values)
                num += 1
            return points[:num]

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings, flat. Those that change no result stay as the first attempt had them.

        Raises:
            UsageError: an earlier attempt of the same job had others.
        """
        earlier = self.client.get_run(self.run_id).data.params
        changes = [
            f"{k} = {v} (was {earlier[k]})"
            for k, v in values.items()
            if earlier.get(k, str(v)) != str(v) and not k.startswith(MAY_CHANGE)
        ]
        if changes:
            raise UsageError(
                f"this job began with other settings: {', '.join(changes)}. A job goes on as it began; "
                f"take back the change, or give the new job a --name of its own"
            )
        params = [Param(name, str(value)) for name, value in values.items() if name not in earlier]
        for i in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[i : i + 100])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in values.items()])

    def datasets(self, manifest: Manifest) -> None:
        """Note the slides to train and to validate on as the run's inputs, by the manifest's name, URI and digest."""
        frame = manifest.to_frame()
        for context in ("train", "val"):
            part = frame[frame["split"] == context]
            if len(part):
                name = f"{Path(manifest.uri).stem}-{context}"
                with warnings.catch_warnings():  # about guesses that do no harm: kind of source, integers without gaps
                    warnings.simplefilter("ignore")
                    dataset = from_pandas(part, source=manifest.uri, name=name)._to_mlflow_entity()
                used = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
                self.client.log_inputs(self.run_id, datasets=[used])

    def file(self, path: Path, folder: str | None = None) -> None:
        """Keep a file as an artifact."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def figure(self, figure: Figure, path: str) -> None:
        """Keep a figure as an artifact."""
        self.client.log_figure(self.run_id, figure, path)

    def begin(self) -> None:
        """Open the run, also again after an attempt that failed."""
        self.client.update_run(self.run_id, status="RUNNING")

    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED; where MLflow is away, the run stays as it is."""
        self.flush()
        self._thread.shutdown()
        try:
            self.client.set_terminated(self.run_id, status=status)
        except AWAY as error:
            log.warning("MLflow at %s was not told that the run is %s: %s", self.uri, status, error)


class SystemMetrics:
    """Logs the load of this machine (CPU, memory, disk, network, GPUs) into the run while the context lasts."""

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
        """Watch, also again: MLflow's monitor ends for good when it cannot send once."""
        if self.tracker is None:
            return
        if self._monitor is not None:
            self._monitor.finish()
        self._monitor = SystemMetricsMonitor(
            self.tracker.run_id, tracking_uri=self.tracker.uri, resume_logging=True, sampling_interval=5
        )
        self._monitor.start()
