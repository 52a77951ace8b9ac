"""Watching one attempt: what its witness and the cluster say of it, and when it has hung.

An attempt without progress for `stalled_s` is ended and retried; one that takes longer than its kind's `max_hours` is
ended for good. Both times are counted from the jobs table, so that they go on when the dispatcher is replaced.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Protocol

from service import exit_status
from service.errors import MagnetError
from service.queue.attempt_folder import Beat, Ending, Stop, attempt_folder
from service.queue.job import Job
from service.queue.job_rows import submission_id
from service.queue.ray_api import OVER, RayAwayError
from service.queue.signals import signal_reason
from service.queue.store import JobStore
from service.settings.parsing import to_dict
from service.settings.service import ServiceSettings

log = logging.getLogger(__name__)

STOP_AGAIN_S = 5.0
"""Seconds between two requests to stop the same job."""
CANCELLED = Stop(reason="cancelled")
LOST = Stop(reason="the cluster lost the job: Ray does not know it, and it gives no sign of life")


class Runs(Protocol):
    """What runs jobs: `service.queue.ray_api.RayJobs`."""

    def submit(self, submission_id: str, entrypoint: str, env: dict[str, str], about: dict[str, str]) -> None:
        """Start a job, once."""

    def status(self, submission_id: str) -> str | None:
        """What has become of it."""

    def message(self, submission_id: str) -> str:
        """What the cluster says of it, in one line; may be empty."""

    def stop(self, submission_id: str) -> None:
        """WindowRequest it to end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an attempt ended."""

    exit_code: int | None = None
    """Of the command; None if nobody saw it."""
    reason: str = ""
    """In words."""
    final: bool = False
    """True: another attempt would end in the same way."""


class Observer:
    """Looks at an attempt, with what the last looks saw.

    Args:
        store: the jobs.
        ray: where they run.
        settings: of the service.
        job_id: the job.
        number: of the attempt.
    """

    def __init__(self, store: JobStore, ray: Runs, settings: ServiceSettings, job_id: str, number: int) -> None:
        self._store, self._ray, self._settings = store, ray, settings
        self._job_id, self._number = job_id, number
        self._submission_id = submission_id(job_id, number)
        job = store.job(job_id)
        self._folder = attempt_folder(settings.job_folder(job.owner, job_id), number)
        self._begun_s = next((a.started_s for a in store.attempts(job_id) if a.number == number), time.time())
        self._most_s = 3600.0 * float(to_dict(settings.max_hours)[job.kind])
        self._beat: Beat | None = None
        self._heard_s = time.monotonic()
        self._stop_s = -float("inf")
        self._activity = ""

    def look(self) -> Outcome | None:
        """The outcome, if the attempt has ended."""
        job = self._store.job(self._job_id)
        if job.attempt != self._number:
            return Outcome(reason="another attempt took over")
        beat = self._hear()
        if beat is not None and beat.ending is not None:
            return self._ended(beat.ending)
        silent_s = time.monotonic() - self._heard_s
        stop = self._overdue(job)
        try:
            status = self._ray.status(self._submission_id)
        except RayAwayError:
            return self._without_ray(stop, silent_s)
        if status in OVER:
            return self._over(status)
        if status is None and silent_s > self._settings.silence_s:
            self._give_up(stop or LOST)
            return self._given_up(LOST)
        if stop is None and silent_s > self._settings.hung_s:
            stop = Stop(reason=f"no sign of life for {_minutes(silent_s)}: the process hung, or lost the store")
        if stop is not None:
            self._stop(stop)
        return None

    def abandon(self, reason: str) -> Outcome:
        """End an attempt that cannot be watched; the outcome."""
        self._give_up(Stop(reason=reason, final=True))
        return Outcome(reason=reason, final=True)

    def _overdue(self, job: Job) -> Stop | None:
        """Why the attempt must end now; notes an attempt that gets nowhere."""
        if job.cancel_requested:
            return CANCELLED
        now_s = time.time()
        if now_s - self._begun_s > self._most_s:
            hours = f"{self._most_s / 3600:g} h, the longest time of a {job.kind} job (max_hours)"
            return Stop(reason=f"ended after {hours}", final=True)
        idle_s = now_s - max(job.moved_s or 0.0, self._begun_s)
        if idle_s > self._settings.stalled_s:
            return Stop(reason=f"no progress for {_minutes(idle_s)}{_doing(job)}")
        if idle_s > self._settings.stalled_s / 2:
            self._note_idle(job, idle_s)
        return None

    def _note_idle(self, job: Job, idle_s: float) -> None:
        said = (self._beat.progress.activity if self._beat else None) or "running"
        activity = f"{said}; no progress for {_minutes(idle_s)}"
        if activity != job.activity:
            self._store.describe(self._job_id, self._number, activity)

    def _hear(self) -> Beat | None:
        """The newest sign of life, noted if it is new."""
        try:
            beat = self._folder.beat()
        except MagnetError as error:
            log.warning("%s: no sign of life could be read: %s", self._submission_id, error)
            return self._beat
        if beat is not None and (self._beat is None or beat.count != self._beat.count):
            self._heard_s = time.monotonic()
            idle = beat.idle_s > self._settings.stalled_s / 2
            # Its activity then says for how long there was no progress.
            progress = (
                replace(beat.progress, activity=None, done=None, total=None, eta_s=None) if idle else beat.progress
            )
            self._store.beat(self._job_id, self._number, progress, beat.idle_s)
            self._beat = beat
        return beat

    def _over(self, status: str) -> Outcome:
        """Ray says it has ended; the witness may have said how while we asked."""
        beat = self._hear()
        if beat is not None and beat.ending is not None:
            return self._ended(beat.ending)
        if status == "SUCCEEDED":
            return Outcome(exit_code=exit_status.DONE)
        if (stop := self._why_stopped()) is not None:
            return Outcome(reason=stop.reason, final=stop.final)
        try:
            said = self._ray.message(self._submission_id)
        except RayAwayError:
            said = ""
        why = f": {said}" if said else ""
        return Outcome(reason=f"killed from outside, with its witness; Ray says {status}{why}")

    def _ended(self, ending: Ending) -> Outcome:
        """What the command's end means; of one that was stopped the reason for that, not the signal."""
        code = ending.exit_code
        stop = None if code in (*exit_status.WITH_RESULTS, *exit_status.FINAL) else self._why_stopped()
        if stop is not None:
            return Outcome(exit_code=code, reason=stop.reason, final=stop.final)
        if (reason := signal_reason(code, ending.last or self._last_progress())) is not None:
            return Outcome(exit_code=code, reason=reason)
        return Outcome(exit_code=code, reason=ending.last or f"exit status {code} without a message")

    def _last_progress(self) -> str:
        """Of a command that printed no lines but a progress bar."""
        progress = self._beat.progress if self._beat else None
        if progress is None or progress.activity is None:
            return ""
        return f"{progress.activity} {progress.done}/{progress.total}" if progress.total else progress.activity

    def _without_ray(self, stop: Stop | None, silent_s: float) -> Outcome | None:
        """Nothing new is started while Ray is unavailable; a job that must end reads so in its folder."""
        if stop is None:
            return None
        self._give_up(stop)
        if silent_s <= self._settings.silence_s:
            return None
        return self._given_up(Stop(reason=f"{stop.reason}; Ray is unavailable, and the job gives no sign of life"))

    def _given_up(self, otherwise: Stop) -> Outcome:
        """The outcome of an attempt that nobody hears of: why it was stopped, or else that it was lost."""
        stop = self._why_stopped() or otherwise
        return Outcome(reason=stop.reason, final=stop.final)

    def _stop(self, stop: Stop) -> None:
        if time.monotonic() - self._stop_s < STOP_AGAIN_S:
            return
        self._stop_s = time.monotonic()
        log.info("%s is stopped: %s", self._submission_id, stop.reason)
        self._give_up(stop)
        try:
            self._ray.stop(self._submission_id)
        except RayAwayError:
            return  # its folder says so too

    def _give_up(self, stop: Stop) -> None:
        try:
            self._folder.stop(stop)
        except MagnetError as error:
            log.warning("%s: its folder cannot say stop: %s", self._submission_id, error)

    def _why_stopped(self) -> Stop | None:
        try:
            return self._folder.why_stopped()
        except MagnetError as error:
            log.warning("%s: the reason of its stop could not be read: %s", self._submission_id, error)
            return None


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _doing(job: Job) -> str:
    activity = (job.activity or "").partition("; no progress for ")[0]
    counted = f" {job.done}/{job.total}" if job.total else ""
    return f"; its last activity was {activity}{counted}" if activity else ""
