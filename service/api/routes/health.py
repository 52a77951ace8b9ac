"""Routes for monitoring: liveness, readiness, and metrics for Prometheus. They need no token and name no job."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.dependencies import get_store
from service.api.errors import NotReadyError
from service.api.metrics import format_metrics
from service.api.problems import describe_problems
from service.queue.incidents import DISPATCHER, Incidents
from service.queue.lease import is_held

router = APIRouter(tags=["health"])


@router.get("/healthz")
def check_liveness() -> dict[str, str]:
    """Whether the API's process responds."""
    return {"status": "alive"}


@router.get("/readyz", responses=describe_problems(503))
def check_readiness(request: Request) -> dict[str, str]:
    """Whether jobs can be submitted and a dispatcher starts them."""
    database = get_store(request).database
    if trouble := Incidents(database).trouble():
        raise NotReadyError(trouble)
    if not is_held(database, DISPATCHER):
        raise NotReadyError("no dispatcher is running; submitted jobs are kept, and start when one runs")
    return {"status": "ready"}


@router.get(
    "/metrics", response_class=Response, responses=describe_problems(503) | {200: {"content": {"text/plain": {}}}}
)
def show_metrics(request: Request) -> Response:
    """Metrics of the queue in Prometheus's text format."""
    return Response(format_metrics(get_store(request)), media_type=CONTENT_TYPE_LATEST)
