"""Watches one attempt: what its supervisor and the cluster report about it, and whether it hangs.

An attempt without progress for `stalled_s` is ended and retried; one that takes longer than its kind's `max_hours` is
ended for good. Both times are counted from the jobs table, so that they continue when the dispatcher is replaced.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Protocol

from service import exit_status
from service.errors import MagnetError
from service.queue.attempt_folder import Ending, Heartbeat, Stop, attempt_folder
from service.queue.job import Job
from service.queue.job_rows import submission_id
from service.queue.ray_api import OVER, RayUnavailableError
from service.queue.signals import signal_reason
from service.queue.store import JobStore
from service.settings.parsing import to_dict
from service.settings.service import ServiceSettings

log = logging.getLogger(__name__)

STOP_AGAIN_S = 5.0
"""Seconds between two requests to stop the same job."""
CANCELLED = Stop(reason="cancelled")
LOST = Stop(reason="the cluster lost the job: Ray does not know it, and it sends no heartbeat")


class Cluster(Protocol):
    """A cluster that runs jobs: `service.queue.ray_api.RayJobs`."""

    def submit(self, submission_id: str, entrypoint: str, env: dict[str, str], metadata: dict[str, str]) -> None:
        """Start a job, once."""

    def status(self, submission_id: str) -> str | None:
        """Return the job's state; None if the cluster does not know it."""

    def message(self, submission_id: str) -> str:
        """Return the cluster's message about the job, in one line; may be empty."""

    def stop(self, submission_id: str) -> None:
        """Request the job to end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an attempt ended."""

    exit_code: int | None = None
    """Exit status of the command; None if it is not known."""
    reason: str = ""
    """Why the attempt ended, for its user."""
    final: bool = False
    """True: another attempt would end in the same way."""


class Observer:
    """Looks at an attempt, and remembers what it saw before.

    Args:
        store: the jobs.
        ray: the cluster on which they run.
        settings: of the service.
        job_id: the job.
        number: of the attempt.
    """

    def __init__(self, store: JobStore, ray: Cluster, settings: ServiceSettings, job_id: str, number: int) -> None:
        self._store, self._ray, self._settings = store, ray, settings
        self._job_id, self._number = job_id, number
        self._submission_id = submission_id(job_id, number)
        job = store.job(job_id)
        self._folder = attempt_folder(settings.job_folder(job.owner, job_id), number)
        self._started_s = next((a.started_s for a in store.attempts(job_id) if a.number == number), time.time())
        self._max_s = 3600.0 * float(to_dict(settings.max_hours)[job.kind])
        self._beat: Heartbeat | None = None
        self._beat_seen_s = time.monotonic()
        self._stop_sent_s = -float("inf")

    def look(self) -> Outcome | None:
        """Return the outcome if the attempt has ended; request it to stop if it must end."""
        job = self._store.job(self._job_id)
        if job.attempt != self._number:
            return Outcome(reason="another attempt took over")
        # The heartbeat comes first: it has the exit status, and Ray knows only that a job failed.
        beat = self._read_beat()
        if beat is not None and beat.ending is not None:
            return self._outcome_of(beat.ending)
        silent_s = time.monotonic() - self._beat_seen_s
        stop = self._reason_to_stop(job)
        try:
            status = self._ray.status(self._submission_id)
        except RayUnavailableError:
            return self._look_without_ray(stop, silent_s)
        if status in OVER:
            return self._outcome_by_ray(status)
        # A head that was restarted forgets jobs that may still run: only a silent one is lost.
        if status is None and silent_s > self._settings.silence_s:
            self._write_stop(stop or LOST)
            return self._outcome_by_stop(LOST)
        if stop is None and silent_s > self._settings.hung_s:
            stop = Stop(reason=f"no heartbeat for {_duration(silent_s)}: the process hung, or cannot reach the store")
        if stop is not None:
            self._send_stop(stop)
        return None

    def abandon(self, reason: str) -> Outcome:
        """Request an attempt that cannot be watched to stop; return its outcome.

        Args:
            reason: why it cannot be watched.
        """
        self._write_stop(Stop(reason=reason, final=True))
        return Outcome(reason=reason, final=True)

    def _reason_to_stop(self, job: Job) -> Stop | None:
        """Return why the attempt must end now; show it in the jobs table when it has no progress for a while."""
        if job.cancel_requested:
            return CANCELLED
        now_s = time.time()
        if now_s - self._started_s > self._max_s:
            hours = f"{self._max_s / 3600:g} h, the longest time of a {job.kind} job (max_hours)"
            return Stop(reason=f"ended after {hours}", final=True)
        idle_s = now_s - max(job.moved_s or 0.0, self._started_s)
        if idle_s > self._settings.stalled_s:
            return Stop(reason=f"no progress for {_duration(idle_s)}{_last_activity(job)}")
        if idle_s > self._settings.stalled_s / 2:
            self._show_idle(job, idle_s)
        return None

    def _show_idle(self, job: Job, idle_s: float) -> None:
        last = (self._beat.progress.activity if self._beat else None) or "running"
        activity = f"{last}; no progress for {_duration(idle_s)}"
        if activity != job.activity:
            self._store.set_activity(self._job_id, self._number, activity)

    def _read_beat(self) -> Heartbeat | None:
        """Return the newest heartbeat; record it in the jobs table if it is new."""
        try:
            beat = self._folder.beat()
        except MagnetError as error:
            log.warning("%s: the heartbeat cannot be read: %s", self._submission_id, error)
            return self._beat
        if beat is not None and (self._beat is None or beat.count != self._beat.count):
            self._beat_seen_s = time.monotonic()
            is_idle = beat.idle_s > self._settings.stalled_s / 2
            # The activity of an idle attempt is set by `_show_idle`.
            progress = (
                replace(beat.progress, activity=None, done=None, total=None, eta_s=None) if is_idle else beat.progress
            )
            self._store.record_heartbeat(self._job_id, self._number, progress, beat.idle_s)
            self._beat = beat
        return beat

    def _outcome_by_ray(self, status: str) -> Outcome:
        """Return the outcome of an attempt that has ended according to Ray."""
        beat = self._read_beat()  # the supervisor may have written the end after the last look
        if beat is not None and beat.ending is not None:
            return self._outcome_of(beat.ending)
        if status == "SUCCEEDED":
            return Outcome(exit_code=exit_status.DONE)
        if (stop := self._read_stop()) is not None:
            return Outcome(reason=stop.reason, final=stop.final)
        try:
            message = self._ray.message(self._submission_id)
        except RayUnavailableError:
            message = ""
        detail = f": {message}" if message else ""
        return Outcome(reason=f"killed from outside, with its supervisor; Ray says {status}{detail}")

    def _outcome_of(self, ending: Ending) -> Outcome:
        """Return what the command's end means; the reason of one that was stopped is that of the stop."""
        code = ending.exit_code
        # A command that ended by itself, in spite of a stop request, has its own result.
        stop = None if code in (*exit_status.WITH_RESULTS, *exit_status.FINAL) else self._read_stop()
        if stop is not None:
            return Outcome(exit_code=code, reason=stop.reason, final=stop.final)
        if (reason := signal_reason(code, ending.last or self._last_progress())) is not None:
            return Outcome(exit_code=code, reason=reason)
        return Outcome(exit_code=code, reason=ending.last or f"exit status {code} without a message")

    def _last_progress(self) -> str:
        """Return the last progress as text, for a command that printed nothing but a progress bar."""
        progress = self._beat.progress if self._beat else None
        if progress is None or progress.activity is None:
            return ""
        return f"{progress.activity} {progress.done}/{progress.total}" if progress.total else progress.activity

    def _look_without_ray(self, stop: Stop | None, silent_s: float) -> Outcome | None:
        """Return the outcome while Ray is unavailable; a job that must end is stopped by the file in its folder."""
        if stop is None:
            return None
        self._write_stop(stop)
        if silent_s <= self._settings.silence_s:
            return None
        return self._outcome_by_stop(Stop(reason=f"{stop.reason}; Ray is unavailable, and the job sends no heartbeat"))

    def _outcome_by_stop(self, default: Stop) -> Outcome:
        """Return the outcome of a silent attempt: the reason of its stop, or else the default."""
        stop = self._read_stop() or default
        return Outcome(reason=stop.reason, final=stop.final)

    def _send_stop(self, stop: Stop) -> None:
        if time.monotonic() - self._stop_sent_s < STOP_AGAIN_S:
            return
        self._stop_sent_s = time.monotonic()
        log.info("%s is stopped: %s", self._submission_id, stop.reason)
        self._write_stop(stop)
        try:
            self._ray.stop(self._submission_id)
        except RayUnavailableError:
            return  # the file in the folder stops the job too

    def _write_stop(self, stop: Stop) -> None:
        try:
            self._folder.request_stop(stop)
        except MagnetError as error:
            log.warning("%s: the stop request cannot be written: %s", self._submission_id, error)

    def _read_stop(self) -> Stop | None:
        try:
            return self._folder.stop_request()
        except MagnetError as error:
            log.warning("%s: the stop request cannot be read: %s", self._submission_id, error)
            return None


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _last_activity(job: Job) -> str:
    activity = (job.activity or "").partition("; no progress for ")[0]
    count = f" {job.done}/{job.total}" if job.total else ""
    return f"; its last activity was {activity}{count}" if activity else ""
