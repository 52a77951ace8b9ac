"""Removes jobs: those that a user deletes, with their files; after `keep_days` the logs and rows of the others.

The results of an expired job stay: scores, pictures, checkpoints, MLflow's runs. A deleted job loses the files in its
own folders too, but neither its MLflow run nor what it wrote elsewhere. A job is marked first, so that it cannot be
queued again, then its files are removed, and its rows last: after a kill at any point the next tick continues.
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
from service.queue.tables import DatabaseCorruptError, DatabaseUnavailableError
from service.settings.service import ServiceSettings

log = logging.getLogger(__name__)

EVERY_S = 600.0
"""Seconds between two searches for expired jobs."""
MAX_PER_TICK = 20
"""Bound of the number of jobs removed in one tick: the dispatcher does no other work meanwhile."""
PAUSE_S = 60.0
"""Seconds to wait after the store failed."""


class Retention:
    """Removes the jobs of a service that are deleted or expired.

    Args:
        store: the jobs.
        settings: of the service.
        forget_attempt: called with the job and the number of each attempt, to remove its workflow.
    """

    def __init__(
        self, store: JobStore, settings: ServiceSettings, forget_attempt: Callable[[str, int], None] = lambda *_: None
    ) -> None:
        self._store, self._settings, self._forget_attempt = store, settings, forget_attempt
        self._next_s = self._pause_s = -float("inf")

    def tick(self) -> None:
        """Remove some of the jobs that users have deleted, and mark the expired ones if it is time for it."""
        if self._settings.keep_days is not None and time.monotonic() >= self._next_s:
            self._store.expire(time.time() - self._settings.keep_days * 86400)
            self._next_s = time.monotonic() + EVERY_S
        if time.monotonic() < self._pause_s:
            return
        for job in self._store.jobs_to_delete(limit=MAX_PER_TICK):
            try:
                self._remove(job)
            except (DatabaseUnavailableError, DatabaseCorruptError, LeaseLostError):
                raise
            except MagnetError as error:
                log.warning("%s stays until its files can be removed: %s", job.id, error)
                self._pause_s = time.monotonic() + PAUSE_S  # for the other jobs the store is unavailable too
                return

    def _remove(self, job: Job) -> None:
        """Remove a job that has ended; cancel one that has not, which a later tick then removes."""
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
