"""Metrics of the queue for Prometheus. They name no user and no job, since they are read without a token."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from service.queue.incidents import DISPATCHER, Incidents
from service.queue.job import STATES
from service.queue.lease import is_held
from service.queue.requests import KINDS
from service.queue.store import JobStore

WINDOW_S = 3600.0
"""Seconds for which starts and errors of the dispatcher are counted."""


def format_metrics(store: JobStore) -> bytes:
    """Return the queue's metrics in Prometheus's text format."""
    # A registry per request: the values come from the database, so the process keeps no counters.
    registry = CollectorRegistry()
    num_jobs = Gauge("magnet_jobs", "Jobs by kind and state", ["kind", "state"], registry=registry)
    counts = store.counts()
    for kind in KINDS:
        for state in STATES:
            num_jobs.labels(kind, state).set(counts.get((kind, state), 0))
    oldest = Gauge("magnet_oldest_beat_seconds", "Time since the oldest heartbeat of a running job", registry=registry)
    beats = [job.beat_s or job.started_s or time.time() for job in store.active()]
    oldest.set(time.time() - min(beats) if beats else 0)
    is_up = Gauge("magnet_dispatcher_up", "1 while a dispatcher is running", registry=registry)
    is_up.set(is_held(store.database, DISPATCHER))
    incidents = Incidents(store.database).counts(WINDOW_S)
    restarts = Gauge(
        "magnet_dispatcher_restarts",
        "Starts of a dispatcher that did not follow an orderly stop, in the last hour",
        registry=registry,
    )
    restarts.set(max(incidents["start"] - incidents["stop"] - 1, 0))
    errors = Gauge("magnet_dispatcher_errors", "Errors in the dispatcher's loop in the last hour", registry=registry)
    errors.set(incidents["error"])
    return generate_latest(registry)
