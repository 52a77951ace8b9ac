"""Routes for those who look after the service: alive, ready, figures for Prometheus. They tell nothing of any job."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from service.api.problems import NotReadyError, documented
from service.queue.incidents import DISPATCHER, Incidents
from service.queue.job import STATES
from service.queue.lease import is_held
from service.queue.requests import KINDS
from service.queue.store import JobStore

router = APIRouter(tags=["health"])


@router.get("/healthz")
def alive() -> dict[str, str]:
    """Whether this process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses=documented(503))
def ready(request: Request) -> dict[str, str]:
    """Whether jobs can be submitted and a dispatcher takes them."""
    database = request.app.state.store.database
    if trouble := Incidents(database).trouble():
        raise NotReadyError(trouble)
    if not is_held(database, DISPATCHER):
        raise NotReadyError("no dispatcher is at work; jobs are kept, and begin when one is started")
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, responses=documented(503) | {200: {"content": {"text/plain": {}}}})
def metrics(request: Request) -> Response:
    """Figures of the queue."""
    registry = CollectorRegistry()
    num_jobs = Gauge("magnet_jobs", "Jobs by kind and state", ["kind", "state"], registry=registry)
    store: JobStore = request.app.state.store
    counts = store.counts()
    for kind in KINDS:
        for state in STATES:
            num_jobs.labels(kind, state).set(counts.get((kind, state), 0))
    oldest = Gauge(
        "magnet_oldest_beat_seconds", "Since the last sign of life of the most silent job", registry=registry
    )
    beats = [job.beat_s or job.started_s or time.time() for job in store.active()]
    oldest.set(time.time() - min(beats) if beats else 0)
    at_work = Gauge("magnet_dispatcher_up", "1 while a dispatcher is at work", registry=registry)
    at_work.set(is_held(store.database, DISPATCHER))
    last_hour = Incidents(store.database).counts(3600.0)
    restarts = Gauge(
        "magnet_dispatcher_restarts",
        "Starts of a dispatcher without an orderly stop before, in the last hour",
        registry=registry,
    )
    restarts.set(max(last_hour["start"] - last_hour["stop"] - 1, 0))
    errors = Gauge("magnet_dispatcher_errors", "Errors of the dispatcher's loop in the last hour", registry=registry)
    errors.set(last_hour["error"])
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
