"""The outbox of a run: metrics, tags and texts that MLflow has not received yet.

An unreachable tracking server must not stop a job. The job therefore only adds entries here. A background thread sends
them, and entries that cannot be sent are saved in a file of the job's storage folder, from which this attempt or a
later one sends them.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from service import storage
from service.errors import MagnetError

log = logging.getLogger(__name__)

MAX_BATCH = 1000
"""Maximum number of metrics that MLflow accepts in one request."""

OUTBOX_FILE = "unsent-metrics.jsonl"
"""Name of the file in the job's folder that holds the saved entries."""

SEND_EVERY_S, RETRY_EVERY_S = 5.0, 30.0
"""Seconds between two requests to MLflow, and between two retries while it is unreachable."""

SAVE_AFTER_S = 5.0
"""Seconds that `Outbox.save` waits for MLflow before it writes the entries to the file."""

UNREACHABLE_ERRORS = (MlflowException, OSError, Boto3Error, BotoCoreError, ClientError)
"""Errors that MLflow's client raises if the server, its database or its artifact store is unreachable."""


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Metrics of one step or one epoch. They are sent together or not at all."""

    step: int
    """Step or epoch number: position on the x axis in MLflow."""
    time_ms: int
    """Milliseconds since 1970 when the metrics were added."""
    values: dict[str, float]
    """Metric values by name."""


@dataclass(slots=True)
class Entries:
    """Contents of an outbox, in the order in which they were added."""

    metrics: list[StepMetrics] = field(default_factory=list)
    """Metrics, oldest first."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tag values by name."""
    texts: dict[str, str] = field(default_factory=dict)
    """Artifact contents by path; a later text replaces an earlier one with the same path."""

    def __bool__(self) -> bool:
        return bool(self.metrics or self.tags or self.texts)

    def lacks(self, names: Iterable[str], step: int) -> bool:
        """Return whether the entries hold none of these metrics for that step or a later one."""
        wanted = set(names)
        newest = next((entry.step for entry in reversed(self.metrics) if entry.values.keys() & wanted), -1)
        return newest < step

    def to_bytes(self) -> bytes:
        """Serialize the entries as JSON lines, one entry per line."""
        lines: list[dict[str, Any]] = [asdict(entry) for entry in self.metrics]
        lines += [{"tag": name, "value": value} for name, value in self.tags.items()]
        lines += [{"file": path, "text": text} for path, text in self.texts.items()]
        return "".join(f"{json.dumps(line)}\n" for line in lines).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Entries:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError, TypeError, KeyError: the data is corrupt.
        """
        entries = cls()
        for text in data.decode().splitlines():
            line = json.loads(text)
            if "tag" in line:
                entries.tags[line["tag"]] = line["value"]
            elif "file" in line:
                entries.texts[line["file"]] = line["text"]
            else:
                entries.metrics.append(StepMetrics(**line))
        return entries


class Outbox:
    """Collects entries for one run and sends them to MLflow.

    The `add_*` methods only touch memory. `send` works in a background thread, `flush` in the caller's thread.

    Args:
        client: MLflow client.
        run_id: id of the run.
        folder: the job's folder, a path or URI, where `save` writes; None: entries stay in memory only.
    """

    def __init__(self, client: MlflowClient, run_id: str, folder: str | None) -> None:
        self.uri = None if folder is None else storage.join(folder, OUTBOX_FILE)
        self.unreachable = False
        """Whether the last attempt to send failed."""
        self._client, self._run_id = client, run_id
        # `_changing` guards the entries and is held for moments. `_sending` is held for a whole delivery, which can
        # take a minute: the thread that adds entries must never wait for it.
        self._entries, self._changing, self._sending = Entries(), threading.Lock(), threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._delivery: Future[bool] | None = None
        self._next_send_s = 0.0
        self._newest_steps: dict[str, int] | None = None
        self._has_file = self._recovered = False

    def load(self) -> None:
        """Take over the entries that an earlier attempt could not send."""
        if self.uri is None:
            return
        try:
            if storage.exists(self.uri):
                self._entries, self._has_file = Entries.from_bytes(storage.read_bytes(self.uri)), True
        except (MagnetError, ValueError, TypeError, KeyError) as error:
            # Metrics are not worth a failed training: it continues without those of the earlier attempt.
            log.warning("%s is unreadable; metrics that an earlier attempt left there are lost: %s", self.uri, error)

    def add_metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Add metrics, unless an earlier attempt added them already and could not send them."""
        numbers = {name: float(value) for name, value in values.items()}
        with self._changing:
            if self._entries.lacks(numbers, step):
                self._entries.metrics.append(StepMetrics(step, int(time.time() * 1000), numbers))

    def add_tags(self, values: Mapping[str, str]) -> None:
        """Add tags."""
        with self._changing:
            self._entries.tags.update(values)

    def add_text(self, text: str, path: str) -> None:
        """Add the content of an artifact."""
        with self._changing:
            self._entries.texts[path] = text

    def send(self) -> None:
        """Send the entries in the background, at most once per `SEND_EVERY_S` or `RETRY_EVERY_S`."""
        if time.monotonic() >= self._next_send_s and (self._delivery is None or self._delivery.done()):
            self._next_send_s = time.monotonic() + (RETRY_EVERY_S if self.unreachable else SEND_EVERY_S)
            self._delivery = self._thread.submit(self.flush)

    def flush(self) -> bool:
        """Send the entries now. Returns False if MLflow is unreachable; the entries then stay in the outbox."""
        with self._sending:
            try:
                self._deliver()
            except UNREACHABLE_ERRORS as error:
                if not self.unreachable:
                    log.warning(
                        "MLflow at %s is unreachable; metrics are kept and the job continues: %s",
                        self._client.tracking_uri,
                        error,
                    )
                # A request may have arrived although its answer was lost: ask again which steps MLflow has.
                self.unreachable, self._newest_steps = True, None
                return False
            if self.unreachable:
                log.warning("MLflow at %s is reachable again and has all metrics", self._client.tracking_uri)
                self.unreachable, self._recovered = False, True
            return True

    def flush_patiently(self, patience_s: float) -> bool:
        """Send the entries, and retry for up to `patience_s` seconds. Returns False if MLflow stays unreachable."""
        end_s = time.monotonic() + patience_s
        while not self.flush():
            if time.monotonic() + 1 > end_s:
                return False
            time.sleep(1)
        self.save()
        return True

    def recovered(self) -> bool:
        """Return whether MLflow became reachable again since the last call."""
        recovered, self._recovered = self._recovered, False
        return recovered

    def save(self) -> None:
        """Send the entries; what is not sent within `SAVE_AFTER_S` seconds is written to the file."""
        wait([self._thread.submit(self.flush)], timeout=SAVE_AFTER_S)
        with self._changing:
            data = self._entries.to_bytes()
        try:
            if self.uri is not None and (data or self._has_file):
                if data:
                    storage.write_bytes(self.uri, data)
                else:
                    storage.delete(self.uri)
                self._has_file = bool(data)
        except MagnetError as error:
            log.warning("metrics that MLflow lacks are in memory only, and are lost if this process dies: %s", error)

    def close(self) -> None:
        """Send the entries a last time and end the background thread."""
        self.flush()
        self._thread.shutdown()

    def _deliver(self) -> None:
        """Send all entries. Each is removed when MLflow has it, so that an error loses and repeats nothing."""
        if self._entries and self._newest_steps is None:
            # The newest step of each metric, in one request: the full history of a long run is megabytes.
            newest = self._client.get_run(self._run_id).data._metric_objs
            self._newest_steps = {metric.key: metric.step for metric in newest}
        while batch := self._next_batch():
            metrics = [
                Metric(name, x, entry.time_ms, entry.step) for entry in batch for name, x in entry.values.items()
            ]
            if metrics:
                self._client.log_batch(self._run_id, metrics=metrics, synchronous=True)
            with self._changing:
                del self._entries.metrics[: len(batch)]
        # Tags and texts may be replaced while they are sent: an entry is removed only if it is still the one sent.
        for name, value in list(self._entries.tags.items()):
            self._client.set_tag(self._run_id, name, value)
            with self._changing:
                if self._entries.tags.get(name) == value:
                    del self._entries.tags[name]
        for path, text in list(self._entries.texts.items()):
            self._client.log_text(self._run_id, text, path)
            with self._changing:
                if self._entries.texts.get(path) == text:
                    del self._entries.texts[path]

    def _next_batch(self) -> list[StepMetrics]:
        """Return as many whole entries as one request takes; entries that MLflow has already are dropped."""
        assert self._newest_steps is not None or not self._entries.metrics
        with self._changing:
            newest = self._newest_steps or {}
            entries = self._entries.metrics
            entries[:] = [e for e in entries if all(newest.get(name, -1) < e.step for name in e.values)]
            num, size = 0, 0
            while num < len(entries) and (num == 0 or size + len(entries[num].values) <= MAX_BATCH):
                size += len(entries[num].values)
                num += 1
            return entries[:num]
