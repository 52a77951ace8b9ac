"""Runs the queue: admits jobs, and takes each attempt through a durable workflow, so that a kill at any point loses
nothing.

DBOS keeps the workflows; the jobs table stays the truth. An attempt's workflow has a name made of job and attempt, so
it exists once. One dispatcher works at a time; another one waits for its lease to end.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import sqlalchemy as sa
from dbos import DBOS, SetWorkflowID

from service.queue.attempts import Attempts, Outcome
from service.queue.job import ACTIVE, Job
from service.queue.lease import Lease
from service.queue.store import JobStore, Limits, submission_id
from service.queue.tables import Database, DatabaseAwayError
from service.service_settings import ServiceSettings
from service.settings import to_dict

log = logging.getLogger(__name__)

Result = TypeVar("Result")

QUEUE = "attempts"
TICK_S = 0.5
"""Seconds between two looks at the table of jobs."""
CHECK_S = 5.0
"""Seconds between two looks whether every attempt has its workflow."""
FOLLOW_S = 600.0
"""Seconds that one step of a workflow watches an attempt: DBOS notes each step."""
WORKFLOW_VERSION = "1"
"""Of the workflow's steps. Not the code's hash: a new version of the program goes on with the old one's jobs."""
UNDER_WAY = ("PENDING", "ENQUEUED", "DELAYED")
"""States of a workflow that will go on by itself."""
MOST_RECOVERIES = 1_000_000
"""A job of weeks may see its dispatcher die often."""


class Dispatcher:
    """Runs a service's jobs until it is told to stop.

    Args:
        database: the queue's.
        attempts: what an attempt is made of.
        settings: of the service.
        ticks: also called at every tick, such as for arrivals.
    """

    def __init__(
        self, database: Database, attempts: Attempts, settings: ServiceSettings, ticks: Sequence[Callable[[], None]]
    ) -> None:
        self.settings, self.attempts, self._ticks = settings, attempts, ticks
        self.store: JobStore = attempts.store
        self._stopped = threading.Event()
        holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._lease = Lease(database, "dispatcher", holder, settings.lease_s)
        self._workflow = self._register()
        self._checked_s = -float("inf")

    def run(self) -> None:
        """Dispatch until `stop`; waits while another dispatcher does."""
        while not self._patiently(self._lease.take):
            log.info("another dispatcher is at work; waiting for its lease to end")
            if self._stopped.wait(min(1.0, self.settings.lease_s / 4)):
                return
        threading.Thread(target=self._hold, name="lease", daemon=True).start()
        most = sum(to_dict(self.settings.max_running).values())
        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=max(most, 1), polling_interval_sec=0.2)
        print("dispatcher: at work", flush=True)
        while not self._stopped.wait(TICK_S):
            self._patiently(self._once)
        DBOS.destroy()
        self._patiently(self._lease.give_back)

    def stop(self) -> None:
        """End `run` soon; workflows go on at the next start."""
        self._stopped.set()

    def _once(self) -> None:
        limits = Limits(to_dict(self.settings.max_running), self.settings.max_running_per_user)
        for job in self.store.admit(limits):
            self._start(job)
        if time.monotonic() - self._checked_s > CHECK_S:
            for job in self.store.active():
                self._start(job)
            self._checked_s = time.monotonic()
        for tick in self._ticks:
            tick()

    def _start(self, job: Job) -> None:
        """Give the job's attempt its workflow, unless it has one that goes on."""
        first = submission_id(job.id, job.attempt)
        for name in itertools.chain([first], (f"{first}.{k}" for k in itertools.count(1))):
            status = DBOS.get_workflow_status(name)
            if status is None:
                with SetWorkflowID(name):
                    DBOS.enqueue_workflow(QUEUE, self._workflow, job.id, job.attempt)
                return
            if status.status in UNDER_WAY or self.store.job(job.id).state not in ACTIVE:
                return
            # It ended without settling the job, so by an error of ours; its steps can be done again.
            log.error("workflow %s is %s, but its job is %s: starting it anew", name, status.status, job.state)

    def _register(self) -> Callable[[str, int], None]:
        """The workflow of an attempt. Its name and its steps' order are what DBOS goes on by."""
        url = sa.make_url(self.settings.database_url)
        own = url.set(database=f"{url.database}-workflows") if url.drivername == "sqlite" else url
        DBOS(
            config={
                "name": "magnet",
                "system_database_url": own.set(drivername=url.get_backend_name()).render_as_string(hide_password=False),
                "executor_id": "dispatcher",
                "application_version": WORKFLOW_VERSION,
                "log_level": "WARNING",
            }
        )

        @DBOS.step(name="launch")
        def launch(job_id: str, number: int) -> dict[str, Any] | None:
            return _plain(self._patiently(lambda: self.attempts.launch(job_id, number)))

        @DBOS.step(name="follow")
        def follow(job_id: str, number: int) -> dict[str, Any] | None:
            return _plain(self._patiently(lambda: self.attempts.follow(job_id, number, FOLLOW_S)))

        @DBOS.step(name="settle")
        def settle(job_id: str, number: int, outcome: dict[str, Any]) -> None:
            self._patiently(lambda: self.attempts.settle(job_id, number, Outcome(**outcome)))

        @DBOS.workflow(name="attempt", max_recovery_attempts=MOST_RECOVERIES)
        def attempt(job_id: str, number: int) -> None:
            outcome = launch(job_id, number)
            while outcome is None:
                outcome = follow(job_id, number)
            settle(job_id, number, outcome)

        return attempt

    def _hold(self) -> None:
        """Renew the lease; a dispatcher that lost it ends at once, since another one is at work."""
        while not self._stopped.wait(self.settings.lease_s / 4):
            if not self._patiently(self._lease.take):
                log.error("the lease went to another dispatcher: this one ends")
                os._exit(1)

    def _patiently(self, action: Callable[[], Result]) -> Result:
        """Do something with the database, again and again while it is away."""
        told = False
        while True:
            try:
                return action()
            except DatabaseAwayError as error:
                if not told:
                    log.warning("%s; waiting for it", error)
                told = True
                time.sleep(1)


def forget_workflows(job_id: str, number: int) -> None:
    """Remove what DBOS keeps of an attempt."""
    names = [submission_id(job_id, number)]
    while DBOS.get_workflow_status(f"{names[0]}.{len(names)}") is not None:
        names.append(f"{names[0]}.{len(names)}")
    DBOS.delete_workflows(names)


def _plain(outcome: Outcome | None) -> dict[str, Any] | None:
    """As DBOS keeps it."""
    return None if outcome is None else asdict(outcome)
