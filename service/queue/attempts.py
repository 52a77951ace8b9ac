"""Runs one attempt of a job: submits it to Ray, follows it to its end, writes the result into the jobs table.

Each of the three parts can be repeated from its beginning after a crash, by the same or another process: `launch`
submits under an id that Ray takes once, `follow` only reads, `settle` changes a row only if it is still active.
"""

from __future__ import annotations

import logging
import shlex
import time

from service import exit_status, storage
from service.errors import MagnetError, UsageError
from service.queue.attempt_folder import AttemptFolder, attempt_folder
from service.queue.backoff import Backoff
from service.queue.grants import groups_of, job_rights
from service.queue.incidents import describe
from service.queue.job import ACTIVE, Job
from service.queue.job_rows import groups_in, submission_id
from service.queue.lease import LeaseLostError
from service.queue.observer import Cluster, Observer, Outcome
from service.queue.ray_api import RayRefusedError
from service.queue.requests import Check, Score, Train, Tune, build_command, from_json, settings_files
from service.queue.store import JobStore
from service.queue.tables import DatabaseCorruptError, DatabaseUnavailableError
from service.settings.service import ServiceSettings

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at a job."""
MAX_FAILED_LOOKS = 5
"""Number of unexpected errors in a row after which a job is given up."""


class UnreadableRequestError(UsageError):
    """A job's row is corrupt, or of another version of the program. To act: the user, who submits the job again."""


class Attempts:
    """Runs attempts.

    Args:
        store: the jobs.
        ray: the cluster on which they run.
        settings: of the service.
    """

    def __init__(self, store: JobStore, ray: Cluster, settings: ServiceSettings) -> None:
        self.store, self.ray, self.settings = store, ray, settings
        self._backoff = Backoff(settings.retry_first_s, settings.retry_most_s)

    def launch(self, job_id: str, number: int) -> Outcome | None:
        """Submit the attempt to Ray; wait while Ray or the store is unavailable.

        Args:
            job_id: the job.
            number: of the attempt.

        Returns:
            None once Ray has the attempt; the outcome if it cannot be submitted.
        """
        reported = False
        while True:
            job = self.store.job(job_id)
            if job.attempt != number or job.state not in ACTIVE:
                return Outcome(reason="settled before")
            if job.cancel_requested:
                return Outcome(reason="cancelled before it began")
            try:
                # Ray forgets its jobs when its head restarts: an attempt that has started must not start again.
                if not self._folder(job).has_started():
                    self._submit(job)
            except (DatabaseUnavailableError, DatabaseCorruptError, LeaseLostError):
                raise
            except (RayRefusedError, UnreadableRequestError) as error:
                return Outcome(reason=str(error), final=True)
            except MagnetError as error:
                if not reported:
                    self.store.mark_waiting(job_id, number, f"waiting: {error}")
                reported = True
                time.sleep(LOOK_S)
            except Exception as error:  # raised further, it would end the workflow, which would be started again
                log.exception("%s: attempt %d cannot be launched", job_id, number)
                return Outcome(reason=f"the service cannot launch this job: {describe(error)}; report it", final=True)
            else:
                self.store.mark_running(job_id, number)
                return None

    def _submit(self, job: Job) -> None:
        request, service = _parse_request(job), self.settings
        folder = service.job_folder(job.owner, job.id)
        for name, data in settings_files(request).items():
            storage.write_bytes(storage.join(folder, name), data)
        supervisor = [service.python, "-m", "service.supervisor", "--folder", self._folder(job).uri]
        command = build_command(request, job.owner, job.id, service)
        entrypoint = shlex.join([*supervisor, "--beat-s", f"{service.beat_s:g}", "--", *command])
        metadata = {"magnet_job": job.id, "owner": job.owner}
        self.ray.submit(submission_id(job.id, job.attempt), entrypoint, self._environment(job), metadata)

    def _folder(self, job: Job) -> AttemptFolder:
        return attempt_folder(self.settings.job_folder(job.owner, job.id), job.attempt)

    def _environment(self, job: Job) -> dict[str, str]:
        service = self.settings
        groups = groups_of(service, job.owner, groups_in(job.groups))
        rights = job_rights(service, job.owner, groups, job.id)
        variables = {"MAGNET_STORAGE": service.runs(job.owner), "MAGNET_RIGHTS": rights.to_text(), "MAGNET_JOB": job.id}
        variables |= {"MLFLOW_TRACKING_URI": service.mlflow} if service.mlflow else {}
        if service.mlflow_token_file is not None:
            variables["MLFLOW_TRACKING_TOKEN"] = storage.read_bytes(service.mlflow_token_file).decode().strip()
        # Unbuffered, so that the log is current; the settings' variables cannot replace the rights of the job.
        return {"PYTHONUNBUFFERED": "1"} | service.job_env | variables

    def follow(self, job_id: str, number: int, for_s: float) -> Outcome | None:
        """Watch the attempt.

        Args:
            job_id: the job.
            number: of the attempt.
            for_s: seconds after which to return.

        Returns:
            The outcome; None if the attempt still runs.
        """
        observer = Observer(self.store, self.ray, self.settings, job_id, number)
        deadline, num_failed = time.monotonic() + for_s, 0
        while time.monotonic() < deadline:
            try:
                if (outcome := observer.look()) is not None:
                    return outcome
            except (DatabaseUnavailableError, DatabaseCorruptError, LeaseLostError):
                raise
            except Exception as error:  # the attempt may still run: look again before giving it up
                num_failed += 1
                log.exception("%s: attempt %d cannot be watched", job_id, number)
                if num_failed == MAX_FAILED_LOOKS:
                    return observer.abandon(f"the service cannot watch this job: {describe(error)}; report it")
            else:
                num_failed = 0
            time.sleep(LOOK_S)
        return None

    def settle(self, job_id: str, number: int, outcome: Outcome) -> None:
        """Write how the attempt ended, and decide whether the job gets another one.

        Args:
            job_id: the job.
            number: of the attempt.
            outcome: how it ended.
        """
        job = self.store.job(job_id)
        if job.attempt != number:
            return
        code, reason = outcome.exit_code, outcome.reason
        # A job that finished before it noticed that it was cancelled is done.
        if code in exit_status.WITH_RESULTS:
            note = None if code == exit_status.DONE else "some slides failed; the table says which and why"
            self.store.end_attempt(job_id, number, state="done", reason=note, exit_code=code)
        elif job.cancel_requested:
            self.store.end_attempt(job_id, number, state="cancelled", reason="cancelled while it ran", exit_code=code)
        elif outcome.final or code in exit_status.FINAL or job.attempts_left < 1:
            self.store.end_attempt(job_id, number, state="failed", reason=reason, exit_code=code)
        else:
            wait_s = self._backoff.wait_s(number - job.first_attempt + 1)
            self.store.requeue(job_id, number, reason=reason, exit_code=code, wait_s=wait_s)


def _parse_request(job: Job) -> Check | Train | Tune | Score:
    """Return the job's request.

    Raises:
        UnreadableRequestError: the row is corrupt, or was written by another version of the program.
    """
    try:
        return from_json(job.request)
    except ValueError as error:
        raise UnreadableRequestError(
            f"the request can no longer be read ({describe(error)}); submit the job again"
        ) from error
