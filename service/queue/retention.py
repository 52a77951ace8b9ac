"""Forgets jobs that ended long ago: their rows, logs and attempt folders.

What a job was for stays: scores and pictures, trainings' checkpoints, MLflow's runs. Files go first and the rows last,
so that whoever comes after a crash still finds what is left to be done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from service import storage
from service.errors import MagnetError
from service.queue.job import Job
from service.queue.store import JobStore
from service.queue.tables import DatabaseAwayError
from service.service_settings import ServiceSettings

log = logging.getLogger(__name__)

EVERY_S = 600.0
"""Seconds between two looks for such jobs."""
AT_ONCE = 20
"""Jobs forgotten in one tick, which keeps the dispatcher from its other work for so long."""


class Retention:
    """Keeps a service's finished jobs for as long as its settings say.

    Args:
        store: the jobs.
        settings: of the service.
        forget_attempt: is told job and number of each attempt, to forget what else is kept of it.
    """

    def __init__(
        self, store: JobStore, settings: ServiceSettings, forget_attempt: Callable[[str, int], None] = lambda *_: None
    ) -> None:
        self._store, self._settings, self._forget_attempt = store, settings, forget_attempt
        self._next_s = -float("inf")

    def tick(self) -> None:
        """Forget some jobs, if it is time to."""
        if self._settings.keep_days is None or time.monotonic() < self._next_s:
            return
        before_s = time.time() - self._settings.keep_days * 86400
        old = self._store.ended_before(before_s, limit=AT_ONCE)
        for job in old:
            try:
                self._forget(job, before_s)
            except DatabaseAwayError:
                raise
            except MagnetError as error:
                log.warning("%s is kept until the store answers: %s", job.id, error)
                old = []  # the others can wait for it too
                break
        if len(old) < AT_ONCE:
            self._next_s = time.monotonic() + EVERY_S

    def _forget(self, job: Job, before_s: float) -> None:
        folder = self._settings.job_folder(job.owner, job.id)
        storage.delete_all(storage.join(folder, "attempts"))
        for name in ("settings.yaml", "search.yaml"):
            storage.delete(storage.join(folder, name))
        for number in range(1, job.attempt + 1):
            self._forget_attempt(job.id, number)
        self._store.forget(job.id, before_s)
