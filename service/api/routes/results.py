"""Routes of results: score tables, reports, pictures and GeoJSON of slides, and the best settings of a search."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from service.api.dependencies import MAX_INTEGER, JobId, Reader, find_job, get_settings, get_store
from service.api.gate.headers import REPORT_POLICY
from service.api.problems import describe_problems
from service.api.result_files import ResultFiles, convert_scores_to_json
from service.queue.allowed import join_result_file

MEDIA = {"parquet": "application/vnd.apache.parquet", "csv": "text/csv; charset=utf-8", "json": "application/json"}
SLIDE_FILES = {"picture": ("pictures", "jpg"), "overlay": ("overlays", "jpg"), "geojson": ("geojson", "geojson")}
"""Folder and suffix of each file of a slide."""

SlideId = Annotated[str, Path(pattern=r"^[^/\\\x00-\x1f]{1,100}$", description="ID of the slide, as in the manifest.")]

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["results"], responses=describe_problems(404))


@router.get("/scores", response_class=Response, responses={200: {"content": {name: {} for name in MEDIA.values()}}})
def read_scores(
    request: Request,
    caller: Reader,
    job_id: JobId,
    format: Annotated[Literal["json", "parquet", "csv"], Query(description="Format of the table.")] = "json",
    limit: Annotated[int, Query(ge=1, le=10_000, description="Maximum number of rows of JSON.")] = 1000,
    offset: Annotated[int, Query(ge=0, le=MAX_INTEGER, description="Number of rows of JSON to skip.")] = 0,
) -> Response:
    """The score table of a scoring. JSON omits the regions, which Parquet and GeoJSON contain."""
    suffix = "csv" if format == "csv" else "parquet"
    data = _read(request, caller, job_id, f"scores.{suffix}")
    if format == "json":
        data = convert_scores_to_json(data, offset, limit)
    return Response(data, media_type=MEDIA[format])


@router.get("/report", response_class=Response, responses={200: {"content": {"text/html": {}}}})
def read_report(request: Request, caller: Reader, job_id: JobId) -> Response:
    """The report of a scoring, as HTML."""
    data = _read(request, caller, job_id, "report.html")
    # The default policy would also block the report's styles and pictures.
    headers = {"Content-Security-Policy": REPORT_POLICY}
    return Response(data, media_type="text/html; charset=utf-8", headers=headers)


@router.get(
    "/slides/{slide_id}/{what}",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}, "application/geo+json": {}}}},
)
def read_slide_file(
    request: Request, caller: Reader, job_id: JobId, slide_id: SlideId, what: Literal["picture", "overlay", "geojson"]
) -> Response:
    """A file of a scored slide: its zoom tree, its regions on the thumbnail, or its regions for QuPath."""
    folder, suffix = SLIDE_FILES[what]
    data = _read(request, caller, job_id, join_result_file(folder, f"{slide_id}.{suffix}"))
    return Response(data, media_type="application/geo+json" if what == "geojson" else "image/jpeg")


@router.get("/best", response_class=Response, responses={200: {"content": {"application/yaml": {}}}})
def read_best_settings(request: Request, caller: Reader, job_id: JobId) -> Response:
    """The best settings that a search has found so far, as YAML for a training."""
    job = find_job(request, caller, job_id)
    data = ResultFiles(get_settings(request), get_store(request).database, caller).read_best_settings(job)
    return Response(data, media_type="application/yaml")


def _read(request: Request, caller: Reader, job_id: str, name: str) -> bytes:
    job = find_job(request, caller, job_id)
    return ResultFiles(get_settings(request), get_store(request).database, caller).read_score_file(job, name)
