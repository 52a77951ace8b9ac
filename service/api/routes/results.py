"""Routes of results: a scoring's table as JSON, Parquet or CSV, its report, and each slide's pictures and GeoJSON."""

from __future__ import annotations

import io
import json
import math
from typing import Annotated, Any, Literal

import pyarrow.parquet as pq
from fastapi import APIRouter, Path, Query, Request, Response

from service import storage
from service.api.access import Caller
from service.api.callers import Reader
from service.api.denials import actor_of
from service.api.headers import REPORT
from service.api.problems import documented
from service.api.routes.jobs import JobId, found, settings_of, store_of
from service.errors import NotFoundError
from service.queue import audit
from service.queue.allowed import joined
from service.queue.grants import groups_of, job_rights
from service.queue.job import Job
from service.queue.requests import Score, Tune, from_json, results_folder
from service.storage.rights import held

MEDIA = {"parquet": "application/vnd.apache.parquet", "csv": "text/csv; charset=utf-8", "json": "application/json"}
FILES = {"picture": ("pictures", "jpg"), "overlay": ("overlays", "jpg"), "geojson": ("geojson", "geojson")}
"""Of a slide: folder and suffix."""

SlideId = Annotated[str, Path(pattern=r"^[^/\\\x00-\x1f]{1,100}$", description="as in the manifest")]

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["results"], responses=documented(404))


@router.get("/scores", response_class=Response, responses={200: {"content": {name: {} for name in MEDIA.values()}}})
def table(
    request: Request,
    caller: Reader,
    job_id: JobId,
    format: Annotated[Literal["json", "parquet", "csv"], Query(description="of the table")] = "json",
    limit: Annotated[int, Query(ge=1, le=10_000, description="rows of JSON")] = 1000,
    offset: Annotated[int, Query(ge=0, le=2**31 - 1, description="rows of JSON to leave out")] = 0,
) -> Response:
    """The score table; as JSON without the regions, which Parquet and GeoJSON have."""
    suffix = "csv" if format == "csv" else "parquet"
    data = _read(request, caller, job_id, f"scores.{suffix}")
    if format == "json":
        rows = pq.read_table(io.BytesIO(data)).drop_columns(["regions"])
        page = [_finite(row) for row in rows.slice(offset, limit).to_pylist()]
        data = json.dumps({"rows": page, "total": rows.num_rows}).encode()
    return Response(data, media_type=MEDIA[format])


@router.get("/report", response_class=Response, responses={200: {"content": {"text/html": {}}}})
def report(request: Request, caller: Reader, job_id: JobId) -> Response:
    """The scoring's report."""
    data = _read(request, caller, job_id, "report.html")
    # It holds names of slides: nothing in it may run.
    safe = {"Content-Security-Policy": REPORT}
    return Response(data, media_type="text/html; charset=utf-8", headers=safe)


@router.get(
    "/slides/{slide_id}/{what}",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}, "application/geo+json": {}}}},
)
def slide(
    request: Request, caller: Reader, job_id: JobId, slide_id: SlideId, what: Literal["picture", "overlay", "geojson"]
) -> Response:
    """A slide's zoom tree, its regions on the thumbnail, or the regions for QuPath."""
    folder, suffix = FILES[what]
    data = _read(request, caller, job_id, joined(folder, f"{slide_id}.{suffix}"))
    return Response(data, media_type="application/geo+json" if what == "geojson" else "image/jpeg")


@router.get("/best", response_class=Response, responses={200: {"content": {"application/yaml": {}}}})
def best(request: Request, caller: Reader, job_id: JobId) -> Response:
    """The best settings that a search has found, as YAML for a training."""
    job = found(request, caller, job_id)
    if not isinstance(from_json(job.request), Tune):
        raise NotFoundError(f"job {job_id} is a {job.kind}: only searches have best settings")
    uri = storage.join(settings_of(request).runs(job.owner), f"{job_id}/best.yaml")
    return Response(_read_file(request, caller, job, uri), media_type="application/yaml")


def _read(request: Request, caller: Caller, job_id: str, name: str) -> bytes:
    """A file of a scoring's results. Raises `NotFoundError` for a job that has none."""
    job = found(request, caller, job_id)
    asked = from_json(job.request)
    if not isinstance(asked, Score):
        raise NotFoundError(f"job {job_id} is a {job.kind}: only scorings have scores")
    if asked.out is not None and job.state != "done":
        # In a folder that others may write to, only a job that finished has written what lies there.
        raise NotFoundError(f"job {job_id} is {job.state}: its results in {asked.out} can be read once it is done")
    return _read_file(
        request, caller, job, storage.join(results_folder(asked, job.owner, job_id, settings_of(request)), name)
    )


def _read_file(request: Request, caller: Caller, job: Job, uri: str) -> bytes:
    """A file that the job may read, links followed; who read it is recorded."""
    groups = groups_of(settings_of(request), job.owner, json.loads(job.groups))
    try:
        with held(job_rights(settings_of(request), job.owner, groups, job.id)):
            data = storage.read_bytes(uri)
    except NotFoundError as error:
        raise NotFoundError(f"job {job.id} has no {storage.name(uri)}; it is {job.state}") from error
    with store_of(request).database.writing() as connection:
        audit.append(connection, actor_of(caller), "result.read", job.id, detail=storage.name(uri))
    return data


def _finite(value: Any) -> Any:
    """As JSON can hold it: no NaN."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
