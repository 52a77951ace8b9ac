"""Removes jobs: those that a user deletes with all their files, and after `keep_days` the logs and rows of the others.

Of an expired job the results stay: scores and pictures, trainings' checkpoints, MLflow's runs. Of a deleted one the
files in its own folders go too, but neither MLflow's run nor what it wrote elsewhere. A job is marked first, so that it
cannot be queued again; then go its files, and its rows last: after a kill at any point the next tick continues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from service import storage
from service.errors import MagnetError
from service.queue.job import ENDED, Job
from service.queue.lease import LeaseLostError
from service.queue.store import BY_USER, JobStore
from service.queue.tables import DatabaseAwayError, DatabaseCorruptError
from service.settings.service import ServiceSettings

log = logging.getLogger(__name__)

EVERY_S = 600.0
"""Seconds between two looks for such jobs."""
AT_ONCE = 20
"""Jobs removed in one tick, which keeps the dispatcher from its other work for so long."""
PAUSE_S = 60.0
"""Seconds without removing after the store failed."""


class Retention:
    """Removes a service's jobs that are deleted, or older than its settings keep them.

    Args:
        store: the jobs.
        settings: of the service.
        forget_attempt: called with job and number of each attempt, to remove what else is kept of it.
    """

    def __init__(
        self, store: JobStore, settings: ServiceSettings, forget_attempt: Callable[[str, int], None] = lambda *_: None
    ) -> None:
        self._store, self._settings, self._forget_attempt = store, settings, forget_attempt
        self._next_s = self._pause_s = -float("inf")

    def tick(self) -> None:
        """Remove what users have deleted; and if it is time to, some of what has expired."""
        if self._settings.keep_days is not None and time.monotonic() >= self._next_s:
            self._store.expire(time.time() - self._settings.keep_days * 86400)
            self._next_s = time.monotonic() + EVERY_S
        if time.monotonic() < self._pause_s:
            return
        for job in self._store.to_delete(limit=AT_ONCE):
            try:
                self._remove(job)
            except (DatabaseAwayError, DatabaseCorruptError, LeaseLostError):
                raise
            except MagnetError as error:
                log.warning("%s is kept until its files can be removed: %s", job.id, error)
                self._pause_s = time.monotonic() + PAUSE_S  # the store is unavailable for the others too
                return

    def _remove(self, job: Job) -> None:
        """Remove a job that has ended; one that has not is cancelled first."""
        if job.state not in ENDED:
            if not job.cancel_requested:
                self._store.cancel(job.id)
            return
        folder = self._settings.job_folder(job.owner, job.id)
        if job.delete_requested == BY_USER:
            storage.delete_all(folder)
            storage.delete_all(storage.join(self._settings.runs(job.owner), job.id))
        else:
            storage.delete_all(storage.join(folder, "attempts"))
            for name in ("settings.yaml", "search.yaml"):
                storage.delete(storage.join(folder, name))
        for number in range(1, job.attempt + 1):
            self._forget_attempt(job.id, number)
        self._store.forget(job.id)
