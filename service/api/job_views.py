"""Jobs as the API shows them."""

from __future__ import annotations

import json

from service.api.response_bodies import AttemptView, JobSummary, JobView, ProgressView
from service.queue.job import Job
from service.queue.ray_api import RayJobs
from service.queue.requests import Score, from_json, results_folder
from service.queue.store import JobStore
from service.settings.service import ServiceSettings


def summarise_job(job: Job) -> JobSummary:
    """Return a job as lists show it."""
    return JobSummary.model_validate(_common_fields(job))


def describe_job(job: Job, store: JobStore, settings: ServiceSettings, ray: RayJobs) -> JobView:
    """Return a job with its request, attempts and links.

    Args:
        job: the job.
        store: the store, for the job's attempts.
        settings: service settings, for the folder of results and MLflow's address.
        ray: client of Ray's Jobs API, for links.
    """
    request = from_json(job.request)
    attempts = [
        AttemptView(
            number=attempt.number,
            state=attempt.state,
            reason=attempt.reason,
            exit_code=attempt.exit_code,
            started_s=attempt.started_s,
            ended_s=attempt.ended_s,
            ray_job=ray.link(attempt.submission_id),
        )
        for attempt in store.attempts(job.id)
    ]
    results = results_folder(request, job.owner, job.id, settings) if isinstance(request, Score) else None
    details = {"request": json.loads(job.request), "attempts": attempts, "results": results}
    return JobView.model_validate(_common_fields(job) | details | {"mlflow_run": _link_run(settings, job)})


def _common_fields(job: Job) -> dict[str, object]:
    # The queue stores a cancellation as a flag; users see it as a separate state until the attempt has ended.
    cancelling = bool(job.cancel_requested) and job.state in ("starting", "running")
    values = {name: getattr(job, name) for name in JobSummary.model_fields if name not in ("state", "progress")}
    progress = ProgressView(activity=job.activity, done=job.done, total=job.total, eta_s=job.eta_s)
    values["delete_requested"] = bool(job.delete_requested)
    return values | {"state": "cancelling" if cancelling else job.state, "progress": progress}


def _link_run(settings: ServiceSettings, job: Job) -> str | None:
    """Return the address of the run's page in MLflow, or the run's ID where MLflow is not a server."""
    if job.mlflow_run is None or not (settings.mlflow or "").startswith("http"):
        return job.mlflow_run
    return f"{settings.mlflow}/#/runs/{job.mlflow_run}"
