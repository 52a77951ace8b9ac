"""One attempt of a job: handed to Ray, followed to its end, settled in the jobs table.

Each part can be done again from its beginning after a crash, by whoever comes next: `launch` submits under an id that
Ray takes once, `follow` only looks, `settle` changes a row that is still as it was.
"""

from __future__ import annotations

import logging
import shlex
import time

from service import exit_status, storage
from service.errors import MagnetError, UsageError
from service.queue.attempt_folder import AttemptFolder, attempt_folder
from service.queue.grants import groups_of, job_rights
from service.queue.incidents import describe
from service.queue.job import ACTIVE, Job
from service.queue.job_rows import groups_in, submission_id
from service.queue.lease import LeaseLostError
from service.queue.observer import Observer, Outcome, Runs
from service.queue.ray_api import RayRefusedError
from service.queue.requests import Check, Score, Train, Tune, from_json, settings_files, words
from service.queue.store import Backoff, JobStore
from service.queue.tables import DatabaseAwayError, DatabaseCorruptError
from service.settings.service import ServiceSettings

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at a job."""
MOST_FAILED_LOOKS = 5
"""In a row, by an error that nobody expects, until the job is given up."""


class UnreadableRequestError(UsageError):
    """A job's row is damaged, or of another version of the program. To act: the user, who submits the job again."""


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
        """Hand the attempt to Ray; None once Ray has it. Waits while Ray or the store is unavailable."""
        reported = False
        while True:
            job = self.store.job(job_id)
            if job.attempt != number or job.state not in ACTIVE:
                return Outcome(reason="settled before")
            if job.cancel_requested:
                return Outcome(reason="cancelled before it began")
            try:
                # One that has begun is not begun again, though Ray may have forgotten it.
                if not self._folder(job).begun():
                    self._submit(job)
            except (DatabaseAwayError, DatabaseCorruptError, LeaseLostError):
                raise
            except (RayRefusedError, UnreadableRequestError) as error:
                return Outcome(reason=str(error), final=True)
            except MagnetError as error:
                if not reported:
                    self.store.waiting(job_id, number, f"waiting: {error}")
                reported = True
                time.sleep(LOOK_S)
            except Exception as error:  # one job's error must not end the workflow, which would be started again
                log.exception("%s attempt %d cannot be launched", job_id, number)
                return Outcome(reason=f"the service cannot launch this job: {describe(error)}; report it", final=True)
            else:
                self.store.running(job_id, number)
                return None

    def _submit(self, job: Job) -> None:
        request, service = _parsed(job), self.settings
        folder = service.job_folder(job.owner, job.id)
        for name, data in settings_files(request).items():
            storage.write_bytes(storage.join(folder, name), data)
        supervisor = [service.python, "-m", "service.supervisor", "--folder", self._folder(job).uri]
        command = [*supervisor, "--beat-s", f"{service.beat_s:g}", "--", *words(request, job.owner, job.id, service)]
        about = {"magnet_job": job.id, "owner": job.owner}
        self.ray.submit(submission_id(job.id, job.attempt), shlex.join(command), self._environment(job), about)

    def _folder(self, job: Job) -> AttemptFolder:
        return attempt_folder(self.settings.job_folder(job.owner, job.id), job.attempt)

    def _environment(self, job: Job) -> dict[str, str]:
        service = self.settings
        groups = groups_of(service, job.owner, groups_in(job.groups))
        rights = job_rights(service, job.owner, groups, job.id)
        own = {"MAGNET_STORAGE": service.runs(job.owner), "MAGNET_RIGHTS": rights.to_text(), "MAGNET_JOB": job.id}
        own |= {"MLFLOW_TRACKING_URI": service.mlflow} if service.mlflow else {}
        if service.mlflow_token_file is not None:
            own["MLFLOW_TRACKING_TOKEN"] = storage.read_bytes(service.mlflow_token_file).decode().strip()
        return {"PYTHONUNBUFFERED": "1"} | service.job_env | own

    def follow(self, job_id: str, number: int, for_s: float) -> Outcome | None:
        """Watch the attempt; its outcome, or None if it still runs after `for_s` seconds."""
        observer = Observer(self.store, self.ray, self.settings, job_id, number)
        deadline, num_failed = time.monotonic() + for_s, 0
        while time.monotonic() < deadline:
            try:
                if (outcome := observer.look()) is not None:
                    return outcome
            except (DatabaseAwayError, DatabaseCorruptError, LeaseLostError):
                raise
            except Exception as error:  # the attempt may still run: look again before it is given up
                num_failed += 1
                log.exception("%s attempt %d cannot be watched", job_id, number)
                if num_failed == MOST_FAILED_LOOKS:
                    return observer.abandon(f"the service cannot watch this job: {describe(error)}; report it")
            else:
                num_failed = 0
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


def _parsed(job: Job) -> Check | Train | Tune | Score:
    """The job's request.

    Raises:
        UnreadableRequestError: the row is damaged, or was written by another version of the program.
    """
    try:
        return from_json(job.request)
    except ValueError as error:
        raise UnreadableRequestError(
            f"the request can no longer be read ({describe(error)}); submit the job again"
        ) from error
