"""One attempt of a job: handed to Ray, followed to its end, settled in the jobs table.

Each part can be done again from its beginning after a crash, by whoever comes next: `launch` submits under an id that
Ray takes once, `follow` only looks, `settle` changes a row that is still as it was.
"""

from __future__ import annotations

import json
import logging
import shlex
import time
from dataclasses import dataclass
from typing import Protocol

from service import exit_status, storage
from service.errors import MagnetError
from service.queue.attempt_folder import AttemptFolder, Beat, Ending, attempt_folder
from service.queue.grants import groups_of, job_rights
from service.queue.job import ACTIVE, Job
from service.queue.ray_api import OVER, RayAwayError, RayRefusedError
from service.queue.requests import from_json, settings_files, words
from service.queue.store import Backoff, JobStore, submission_id
from service.service_settings import ServiceSettings

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at a job."""
STOP_AGAIN_S = 5.0
"""Seconds between two requests to stop the same job."""


class Runs(Protocol):
    """What runs jobs: `service.queue.ray_api.RayJobs`."""

    def submit(self, submission_id: str, entrypoint: str, env: dict[str, str], about: dict[str, str]) -> None:
        """Start a job, once."""

    def status(self, submission_id: str) -> str | None:
        """What has become of it."""

    def stop(self, submission_id: str) -> None:
        """Ask it to end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an attempt ended."""

    exit_code: int | None = None
    """Of the command; None if nobody saw it."""
    reason: str = ""
    """In words."""
    final: bool = False
    """True: another attempt would end in the same way."""


class Attempts:
    """Runs attempts.

    Args:
        store: the jobs.
        ray: where they run.
        settings: of the service.
    """

    def __init__(self, store: JobStore, ray: Runs, settings: ServiceSettings) -> None:
        self.store, self.ray, self.settings = store, ray, settings
        self._backoff = Backoff(settings.retry_first_s, settings.retry_most_s)

    def launch(self, job_id: str, number: int) -> Outcome | None:
        """Hand the attempt to Ray; None once Ray has it. Waits where Ray or the store is away."""
        told = False
        while True:
            job = self.store.job(job_id)
            if job.attempt != number or job.state not in ACTIVE:
                return Outcome(reason="settled before")
            if job.cancel_requested:
                return Outcome(reason="cancelled before it began")
            try:
                # One that has begun is not begun again, though Ray may have forgotten it.
                if self._folder(job).beat() is None:
                    self._submit(job)
            except RayRefusedError as error:
                return Outcome(reason=str(error), final=True)
            except MagnetError as error:
                if not told:
                    self.store.waiting(job_id, number, f"waiting: {error}")
                told = True
                time.sleep(LOOK_S)
            else:
                self.store.running(job_id, number)
                return None

    def _submit(self, job: Job) -> None:
        request, service = from_json(job.request), self.settings
        folder = service.job_folder(job.owner, job.id)
        for name, data in settings_files(request).items():
            storage.write_bytes(storage.join(folder, name), data)
        witness = [service.python, "-m", "service.queue.witness", "--folder", self._folder(job).uri]
        command = [*witness, "--beat-s", f"{service.beat_s:g}", "--", *words(request, job.owner, job.id, service)]
        about = {"magnet_job": job.id, "owner": job.owner}
        self.ray.submit(submission_id(job.id, job.attempt), shlex.join(command), self._environment(job), about)

    def _folder(self, job: Job) -> AttemptFolder:
        return attempt_folder(self.settings.job_folder(job.owner, job.id), job.attempt)

    def _environment(self, job: Job) -> dict[str, str]:
        service = self.settings
        groups = groups_of(service, job.owner, json.loads(job.groups))
        rights = job_rights(service, job.owner, groups, job.id)
        own = {"MAGNET_STORAGE": service.runs(job.owner), "MAGNET_RIGHTS": rights.to_text(), "MAGNET_JOB": job.id}
        own |= {"MLFLOW_TRACKING_URI": service.mlflow} if service.mlflow else {}
        return {"PYTHONUNBUFFERED": "1"} | service.job_env | own

    def follow(self, job_id: str, number: int, for_s: float) -> Outcome | None:
        """Watch the attempt; its outcome, or None if it still runs after `for_s` seconds."""
        watch = _Watch(self, job_id, number)
        deadline = time.monotonic() + for_s
        while time.monotonic() < deadline:
            if (outcome := watch.look()) is not None:
                return outcome
            time.sleep(LOOK_S)
        return None

    def settle(self, job_id: str, number: int, outcome: Outcome) -> None:
        """Write down how the attempt ended, and whether there is another one."""
        job = self.store.job(job_id)
        if job.attempt != number:
            return
        code, reason = outcome.exit_code, outcome.reason
        if code in exit_status.WITH_RESULTS:
            some = None if code == exit_status.DONE else "some slides failed; the table says which and why"
            self.store.end(job_id, number, state="done", reason=some, exit_code=code)
        elif job.cancel_requested:
            self.store.end(job_id, number, state="cancelled", reason="cancelled while it ran", exit_code=code)
        elif outcome.final or code in exit_status.FINAL or job.attempts_left < 1:
            self.store.end(job_id, number, state="failed", reason=reason, exit_code=code)
        else:
            wait_s = self._backoff.wait_s(number - job.first_attempt + 1)
            self.store.again(job_id, number, reason=reason, exit_code=code, wait_s=wait_s)


class _Watch:
    """One look after the other at an attempt, with what the last looks saw."""

    def __init__(self, attempts: Attempts, job_id: str, number: int) -> None:
        self._store, self._ray, self._settings = attempts.store, attempts.ray, attempts.settings
        self._job_id, self._number = job_id, number
        self._submission_id = submission_id(job_id, number)
        owner = self._store.job(job_id).owner
        self._folder = attempt_folder(self._settings.job_folder(owner, job_id), number)
        self._beat: Beat | None = None
        self._heard_s = time.monotonic()
        self._stop_s = -float("inf")

    def look(self) -> Outcome | None:
        """The outcome, if the attempt has ended."""
        job = self._store.job(self._job_id)
        if job.attempt != self._number:
            return Outcome(reason="another attempt took over")
        beat = self._hear()
        if beat is not None and beat.ending is not None:
            return _ended(beat.ending)
        silent_s = time.monotonic() - self._heard_s
        try:
            status = self._ray.status(self._submission_id)
        except RayAwayError:
            return self._without_ray(job, silent_s)
        if job.cancel_requested:
            self._stop("cancelled")
        if status in OVER:
            return self._over(status)
        if status is None and silent_s > self._settings.silence_s:
            self._give_up()
            return Outcome(reason="the cluster lost the job: Ray does not know it, and it gives no sign of life")
        if silent_s > self._settings.hung_s:
            self._stop(f"no sign of life for {silent_s:.0f} s")
        return None

    def _hear(self) -> Beat | None:
        """The newest sign of life, noted if it is new."""
        try:
            beat = self._folder.beat()
        except MagnetError as error:
            log.warning("%s: no sign of life to be had: %s", self._submission_id, error)
            return self._beat
        if beat is not None and (self._beat is None or beat.count != self._beat.count):
            self._heard_s = time.monotonic()
            self._store.beat(self._job_id, self._number, beat.progress)
            self._beat = beat
        return beat

    def _over(self, status: str) -> Outcome:
        """Ray says it has ended; the witness may have said how while we asked."""
        beat = self._hear()
        if beat is not None and beat.ending is not None:
            return _ended(beat.ending)
        if status == "SUCCEEDED":
            return Outcome(exit_code=exit_status.DONE)
        return Outcome(reason=f"killed: Ray says {status}, and its end was not told")

    def _without_ray(self, job: Job, silent_s: float) -> Outcome | None:
        """Nothing new is started while Ray is away; a job that is cancelled hears it through its folder."""
        if job.cancel_requested:
            self._give_up()
            if silent_s > self._settings.silence_s:
                return Outcome(reason="cancelled; Ray is away, and the job gives no sign of life")
        return None

    def _stop(self, why: str) -> None:
        if time.monotonic() - self._stop_s < STOP_AGAIN_S:
            return
        self._stop_s = time.monotonic()
        log.info("%s is stopped: %s", self._submission_id, why)
        self._give_up()
        try:
            self._ray.stop(self._submission_id)
        except RayAwayError:
            return  # its folder says so too

    def _give_up(self) -> None:
        try:
            self._folder.stop()
        except MagnetError as error:
            log.warning("%s: its folder cannot say stop: %s", self._submission_id, error)


def _ended(ending: Ending) -> Outcome:
    """In words for a person who asks why."""
    said = ending.last or "it said nothing"
    if ending.exit_code > 128:
        said = f"ended by signal {ending.exit_code - 128}; it said last: {said}"
    return Outcome(exit_code=ending.exit_code, reason=said)
