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
from service.queue.quotas import effective
from service.queue.store import JobStore, Limits
from service.queue.tables import Database, DatabaseAwayError, DatabaseCorruptError
from service.settings.parsing import to_dict
from service.settings.service import ServiceSettings

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
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Of a part of the loop that fails."""
MOST_RECOVERIES = 1_000_000
"""A job of weeks may see its dispatcher die often."""


class StoppingError(Exception):
    """The dispatcher stops and cannot wait for the database any longer."""


class Part:
    """A part of the dispatcher's loop: what it raises ends neither the loop nor the other parts.

    Args:
        name: for log and incidents.
        action: what it does at each tick.
        incidents: where its errors are noted.
    """

    def __init__(self, name: str, action: Callable[[], None], incidents: Incidents) -> None:
        self._name, self._action, self._incidents = name, action, incidents
        self._num_failed, self._next_s = 0, -float("inf")
        self._reported = ""

    def run(self) -> None:
        """Do it, unless it failed a moment ago: the pause doubles with each failure in a row."""
        if time.monotonic() < self._next_s:
            return
        try:
            self._action()
        except StoppingError:
            raise
        except Exception as error:  # noqa: BLE001  the loop must survive whatever one part does
            self._note(error)
        else:
            self._num_failed, self._reported = 0, ""

    def _note(self, error: Exception) -> None:
        self._num_failed += 1
        pause_s = min(FIRST_PAUSE_S * 2.0 ** (self._num_failed - 1), LONGEST_PAUSE_S)
        self._next_s = time.monotonic() + pause_s
        text = f"{self._name}: {describe(error)}"
        if text != self._reported:  # its traceback once, however often it comes
            log.error("%s; the other parts go on, and this one after a pause", text, exc_info=error)
            self._reported = text
        try:
            self._incidents.add("error", text)
        except (MagnetError, SQLAlchemyError) as failure:
            log.warning("the error could not be noted in the database: %s", failure)


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
        self.settings, self.attempts = settings, attempts
        self.store: JobStore = attempts.store
        self._stopped = threading.Event()
        holder = f"{socket.gethostname()[:40]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._lease = Lease(database, DISPATCHER, holder, settings.lease_s)
        self.store.fence = self._lease.require
        self._incidents = Incidents(database)
        actions = {"admission": self._admit, "workflows": self._check} | {_name_of(tick): tick for tick in ticks}
        self._parts = [Part(name, partial(self._patiently, do), self._incidents) for name, do in actions.items()]
        self._workflow = self._register()
        self._checked_s = -float("inf")

    def run(self) -> None:
        """Dispatch until `stop`; waits while another dispatcher does."""
        try:
            self._run()
        except StoppingError:
            log.warning("stopped while the database was unavailable")

    def _run(self) -> None:
        while not self._patiently(self._lease.take):
            log.info("another dispatcher is at work; waiting for its lease to end")
            if self._stopped.wait(min(1.0, self.settings.lease_s / 4)):
                return
        self._patiently(lambda: self._incidents.add("start", self._lease.holder))
        threading.Thread(target=self._hold, name="lease", daemon=True).start()
        most = sum(to_dict(self.settings.max_running).values())
        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=max(most, 1), polling_interval_sec=0.2)
        print("dispatcher: at work", flush=True)
        while not self._stopped.wait(TICK_S):
            for part in self._parts:
                part.run()
        DBOS.destroy()
        self._patiently(lambda: self._incidents.add("stop"))
        self._patiently(self._lease.give_back)

    def stop(self) -> None:
        """End `run` soon; workflows go on at the next start."""
        self._stopped.set()

    def _admit(self) -> None:
        """Begin the jobs that may start; one that gets no workflow here gets it from `_check`."""

        def max_running(owner: str, groups: Collection[str]) -> int:
            return effective(self.settings, owner, groups).max_running

        limits = Limits(to_dict(self.settings.max_running), self.settings.max_running_per_user, max_running)
        for job in self.store.admit(limits):
            self._start(job)

    def _check(self) -> None:
        """Give each attempt its workflow that has none; one that fails does not keep the others from theirs."""
        if time.monotonic() - self._checked_s <= CHECK_S:
            return
        self._checked_s = time.monotonic()
        failures = []
        for job in self.store.active():
            try:
                self._start(job)
            except (DatabaseAwayError, DatabaseCorruptError, LeaseLostError):
                raise
            except Exception as error:  # noqa: BLE001  raised below, after the other jobs had their turn
                failures.append(error)
        if failures:
            raise failures[0]

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
            log.error("workflow %s is %s, but its job is %s: starting another one", name, status.status, job.state)

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
            try:
                held = self._patiently(self._lease.take)
            except StoppingError:
                return
            except Exception:  # without its lease no dispatcher may go on, whatever the reason
                log.exception("the lease cannot be renewed: this dispatcher ends")
                end_process(exit_status.FAILED)
            if not held:
                self._end_without_lease()

    def _end_without_lease(self) -> NoReturn:
        """End this process as it stands: another dispatcher is at work, which does what threads here leave undone."""
        if self._stopped.is_set():  # it was given back
            end_process(exit_status.DONE)
        log.error("another dispatcher has taken the lease: this one ends")
        end_process(exit_status.FAILED)

    def _patiently(self, action: Callable[[], Result]) -> Result:
        """Do something with the database, repeated while it is unavailable.

        Raises:
            StoppingError: it is unavailable, and this dispatcher is to stop.
        """
        reported = False
        while True:
            try:
                return action()
            except LeaseLostError:
                self._end_without_lease()
            except DatabaseAwayError as error:
                if not reported:
                    log.warning("%s; waiting for it", error)
                reported = True
                if self._stopped.wait(1):
                    raise StoppingError from error


def end_process(status: int) -> NoReturn:
    """End without waiting for threads that follow attempts, which would take as long as their jobs."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def _name_of(action: Callable[[], None]) -> str:
    """Of a bound method: its class, such as Arrivals."""
    return type(getattr(action, "__self__", action)).__name__


def forget_workflows(job_id: str, number: int) -> None:
    """Remove what DBOS keeps of an attempt."""
    names = [submission_id(job_id, number)]
    while DBOS.get_workflow_status(f"{names[0]}.{len(names)}") is not None:
        names.append(f"{names[0]}.{len(names)}")
    DBOS.delete_workflows(names)


def _plain(outcome: Outcome | None) -> dict[str, Any] | None:
    """As DBOS keeps it."""
    return None if outcome is None else asdict(outcome)
