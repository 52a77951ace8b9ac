"""The dispatcher: starts jobs, and runs each attempt as a durable workflow, so that a kill at any point loses nothing.

DBOS keeps the workflows; the jobs table stays the truth. The name of a workflow consists of job and attempt, so each
exists once. One dispatcher works at a time; another one waits until its lease ends.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NoReturn, TypeVar

import sqlalchemy as sa
from dbos import DBOS, SetWorkflowID
from sqlalchemy.exc import SQLAlchemyError

from service import exit_status
from service.errors import MagnetError
from service.queue.attempts import Attempts, Outcome
from service.queue.incidents import DISPATCHER, Incidents, describe
from service.queue.job import ACTIVE, Job
from service.queue.job_rows import submission_id
from service.queue.lease import Lease, LeaseLostError
from service.queue.quotas import effective_limits
from service.queue.store import JobStore, Limits
from service.queue.tables import Database, DatabaseCorruptError, DatabaseUnavailableError
from service.settings.parsing import to_dict
from service.settings.service import ServiceSettings

log = logging.getLogger(__name__)

Result = TypeVar("Result")

QUEUE = "attempts"
"""Name of the queue in DBOS."""
TICK_S = 0.5
"""Seconds between two looks at the jobs table."""
CHECK_S = 5.0
"""Seconds between two checks that every attempt has a workflow."""
FOLLOW_S = 600.0
"""Seconds that one step of a workflow watches an attempt: DBOS writes each step into its database."""
WORKFLOW_VERSION = "1"
"""Version of the workflow's steps. It is no hash of the code: a new version of the program continues the old jobs."""
UNFINISHED = ("PENDING", "ENQUEUED", "DELAYED")
"""States of a workflow that DBOS continues by itself."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Shortest and longest pause in seconds of a part of the loop that fails."""
MAX_RECOVERIES = 1_000_000
"""Bound of the restarts of a workflow: the dispatcher may restart often during a job of weeks."""


class StoppingError(Exception):
    """The dispatcher must stop while it waits for the database."""


class Part:
    """A part of the dispatcher's loop; its errors end neither the loop nor the other parts.

    Args:
        name: of the part, in log and incidents.
        action: called at each tick.
        incidents: takes its errors.
    """

    def __init__(self, name: str, action: Callable[[], None], incidents: Incidents) -> None:
        self._name, self._action, self._incidents = name, action, incidents
        self._num_failed, self._next_s = 0, -float("inf")
        self._reported = ""

    def run(self) -> None:
        """Run the action, unless it failed recently: the pause doubles with each failure in a row."""
        if time.monotonic() < self._next_s:
            return
        try:
            self._action()
        except StoppingError:
            raise
        except Exception as error:  # noqa: BLE001  the loop must survive any error of a part
            self._record(error)
        else:
            self._num_failed, self._reported = 0, ""

    def _record(self, error: Exception) -> None:
        self._num_failed += 1
        pause_s = min(FIRST_PAUSE_S * 2.0 ** (self._num_failed - 1), LONGEST_PAUSE_S)
        self._next_s = time.monotonic() + pause_s
        text = f"{self._name}: {describe(error)}"
        if text != self._reported:  # the traceback is logged once, even if the error is repeated
            log.error("%s; the other parts continue, and this one after a pause", text, exc_info=error)
            self._reported = text
        try:
            self._incidents.add("error", text)
        except (MagnetError, SQLAlchemyError) as failure:
            log.warning("the error could not be recorded in the database: %s", failure)


class Dispatcher:
    """Runs the jobs of a service until `stop` is called.

    Args:
        database: of the queue.
        attempts: runs the attempts.
        settings: of the service.
        ticks: further actions for every tick, such as `Arrivals.tick`.
    """

    def __init__(
        self, database: Database, attempts: Attempts, settings: ServiceSettings, ticks: Sequence[Callable[[], None]]
    ) -> None:
        self.settings, self.attempts = settings, attempts
        self.store: JobStore = attempts.store
        self._stopped = threading.Event()
        holder = f"{socket.gethostname()[:40]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._lease = Lease(database, DISPATCHER, holder, settings.lease_s)
        self.store.fence = self._lease.require  # from now on each transaction of this process checks the lease
        self._incidents = Incidents(database)
        actions = {"admission": self._admit, "workflows": self._check_workflows}
        actions |= {_part_name(tick): tick for tick in ticks}
        self._parts = [
            Part(name, partial(self._wait_for_database, action), self._incidents) for name, action in actions.items()
        ]
        self._workflow = self._register_workflow()
        self._checked_s = -float("inf")

    def run(self) -> None:
        """Dispatch until `stop` is called; wait while another dispatcher works."""
        try:
            self._run()
        except StoppingError:
            log.warning("stopped while the database was unavailable")

    def _run(self) -> None:
        while not self._wait_for_database(self._lease.take):
            log.info("another dispatcher is at work; waiting until its lease ends")
            if self._stopped.wait(min(1.0, self.settings.lease_s / 4)):
                return
        self._wait_for_database(lambda: self._incidents.add("start", self._lease.holder))
        threading.Thread(target=self._renew_lease, name="lease", daemon=True).start()
        max_running = sum(to_dict(self.settings.max_running).values())
        DBOS.launch()  # only with the lease, since it continues the unfinished workflows
        # A workflow occupies a worker for as long as its job runs.
        DBOS.register_queue(QUEUE, worker_concurrency=max(max_running, 1), polling_interval_sec=0.2)
        print("dispatcher: at work", flush=True)
        while not self._stopped.wait(TICK_S):
            for part in self._parts:
                part.run()
        DBOS.destroy()
        self._wait_for_database(lambda: self._incidents.add("stop"))
        self._wait_for_database(self._lease.give_back)

    def stop(self) -> None:
        """Make `run` return soon; the workflows continue at the next start."""
        self._stopped.set()

    def _admit(self) -> None:
        """Start the jobs that the limits allow. After a crash here, `_check_workflows` makes the missing workflows."""

        def max_running(owner: str, groups: Collection[str]) -> int:
            return effective_limits(self.settings, owner, groups).max_running

        limits = Limits(to_dict(self.settings.max_running), self.settings.max_running_per_user, max_running)
        for job in self.store.admit(limits):
            self._start_workflow(job)

    def _check_workflows(self) -> None:
        """Make the missing workflows of attempts; an error with one job does not affect the others."""
        if time.monotonic() - self._checked_s <= CHECK_S:
            return
        self._checked_s = time.monotonic()
        failures = []
        for job in self.store.active():
            try:
                self._start_workflow(job)
            except (DatabaseUnavailableError, DatabaseCorruptError, LeaseLostError):
                raise
            except Exception as error:  # noqa: BLE001  raised below, after the other jobs
                failures.append(error)
        if failures:
            raise failures[0]

    def _start_workflow(self, job: Job) -> None:
        """Make the workflow of the job's attempt, unless there is one that continues by itself."""
        first = submission_id(job.id, job.attempt)
        for name in itertools.chain([first], (f"{first}.{k}" for k in itertools.count(1))):
            status = DBOS.get_workflow_status(name)
            if status is None:
                with SetWorkflowID(name):
                    DBOS.enqueue_workflow(QUEUE, self._workflow, job.id, job.attempt)
                return
            if status.status in UNFINISHED or self.store.job(job.id).state not in ACTIVE:
                return
            # It ended without settling the job, by an error of the program. Its steps can be repeated.
            log.error("workflow %s is %s, but its job is %s: starting another one", name, status.status, job.state)

    def _register_workflow(self) -> Callable[[str, int], None]:
        """Register the workflow of an attempt with DBOS; return it.

        DBOS continues workflows of earlier processes by name and by the order of their steps.
        """
        url = sa.make_url(self.settings.database_url)
        dbos_url = url.set(database=f"{url.database}-workflows") if url.drivername == "sqlite" else url
        DBOS(
            config={
                "name": "magnet",
                "system_database_url": dbos_url.set(drivername=url.get_backend_name()).render_as_string(
                    hide_password=False
                ),
                "executor_id": "dispatcher",
                "application_version": WORKFLOW_VERSION,
                "log_level": "WARNING",
            }
        )

        @DBOS.step(name="launch")
        def launch(job_id: str, number: int) -> dict[str, Any] | None:
            return _to_dict(self._wait_for_database(lambda: self.attempts.launch(job_id, number)))

        @DBOS.step(name="follow")
        def follow(job_id: str, number: int) -> dict[str, Any] | None:
            return _to_dict(self._wait_for_database(lambda: self.attempts.follow(job_id, number, FOLLOW_S)))

        @DBOS.step(name="settle")
        def settle(job_id: str, number: int, outcome: dict[str, Any]) -> None:
            self._wait_for_database(lambda: self.attempts.settle(job_id, number, Outcome(**outcome)))

        @DBOS.workflow(name="attempt", max_recovery_attempts=MAX_RECOVERIES)
        def attempt(job_id: str, number: int) -> None:
            outcome = launch(job_id, number)
            while outcome is None:
                outcome = follow(job_id, number)
            settle(job_id, number, outcome)

        return attempt

    def _renew_lease(self) -> None:
        """Renew the lease; end this process at once if it lost the lease, since another dispatcher is at work."""
        while not self._stopped.wait(self.settings.lease_s / 4):
            try:
                is_held = self._wait_for_database(self._lease.take)
            except StoppingError:
                return
            except Exception:  # a dispatcher must not continue without its lease, for any reason
                log.exception("the lease cannot be renewed: this dispatcher ends")
                end_process(exit_status.FAILED)
            if not is_held:
                self._end_without_lease()

    def _end_without_lease(self) -> NoReturn:
        """End this process without cleaning up: the dispatcher at work completes what its threads leave."""
        if self._stopped.is_set():  # it was given back
            end_process(exit_status.DONE)
        log.error("another dispatcher has taken the lease: this one ends")
        end_process(exit_status.FAILED)

    def _wait_for_database(self, action: Callable[[], Result]) -> Result:
        """Run an action on the database; repeat it while the database is unavailable.

        Raises:
            StoppingError: the database is unavailable, and the dispatcher must stop.
        """
        reported = False
        while True:
            try:
                return action()
            except LeaseLostError:
                self._end_without_lease()
            except DatabaseUnavailableError as error:
                if not reported:
                    log.warning("%s; waiting until it is available", error)
                reported = True
                if self._stopped.wait(1):
                    raise StoppingError from error


def end_process(status: int) -> NoReturn:
    """End this process without waiting for the threads that follow attempts, which take as long as their jobs.

    Args:
        status: the exit status.
    """
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def _part_name(action: Callable[[], None]) -> str:
    """Return the name of a part: for a bound method the name of its class, such as Arrivals."""
    return type(getattr(action, "__self__", action)).__name__


def forget_workflows(job_id: str, number: int) -> None:
    """Remove the workflows of an attempt from DBOS.

    Args:
        job_id: the job.
        number: of the attempt.
    """
    names = [submission_id(job_id, number)]
    while DBOS.get_workflow_status(f"{names[0]}.{len(names)}") is not None:
        names.append(f"{names[0]}.{len(names)}")
    DBOS.delete_workflows(names)


def _to_dict(outcome: Outcome | None) -> dict[str, Any] | None:
    """Return an outcome in the form that DBOS can store."""
    return None if outcome is None else asdict(outcome)
