"""What a training attempt needs from outside: interfaces that MLflow, Ray and the tests' fakes fulfil.

The loop knows nothing but these, so that it runs without MLflow and without Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, Self

from ray_jobs.training.input.micro_batch import MicroBatch
from service.progress.record import Progress
from service.slides.reader_protocol import Reader

Stream = Callable[[int], Iterator[MicroBatch]]
"""Yields this worker's micro-batches from a step on."""

ReaderOpener = Callable[[], AbstractContextManager[Reader]]
"""Opens a reader, which is closed when the context ends."""


ProgressSink = Callable[[Progress], object]
"""Takes the progress of the job; it neither waits nor raises."""


class Tracker(Protocol):
    """Takes the record of a training; `ray_jobs.tracking.mlflow_run.Tracker` sends it to MLflow.

    No method may fail or wait long when the server is unavailable: a training does not depend on its record.
    """

    def log_metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Note metrics of a step, or of an epoch."""
        ...

    def add_tags(self, values: Mapping[str, str]) -> None:
        """Note tags."""
        ...

    def add_text(self, text: str, path: str) -> None:
        """Note the content of an artifact; a later one of the same path replaces it."""
        ...

    def send_in_background(self) -> None:
        """Send in the background what is noted."""
        ...

    def save_outbox(self) -> None:
        """Send what is noted, or store it where the next attempt finds it."""
        ...

    def consume_recovery(self) -> bool:
        """Return whether the server was unavailable and has come back since the last call."""
        ...


class Monitor(Protocol):
    """Logs the load of the machine while the context lasts; `ray_jobs.tracking.mlflow_run.SystemMetrics` does."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def renew(self) -> None:
        """Start again, after the server was unavailable."""
        ...


class NoMonitor:
    """A `Monitor` that logs nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def renew(self) -> None:
        """Do nothing."""


class Reporter(Protocol):
    """Receives the metrics of each epoch, on every worker; Ray's own `report` is one."""

    def __call__(self, metrics: dict[str, float], /) -> object:
        """Receive the metrics of an epoch."""
        ...
