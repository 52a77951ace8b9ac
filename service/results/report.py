"""A scored cohort as one HTML file: metrics, gallery, refused and failed slides, costs.

The file needs no other file to be read. It links to the pictures by paths relative to the folder of the scoring, and
contains small thumbnails of the slides with the highest probabilities.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from service import storage
from service.cohort.outlines import MIN_HIT_COVERAGE
from service.errors import NotFoundError
from service.results.histogram import draw_histogram
from service.results.pictures import FOOT_PX, GAP_PX, HEAD_PX
from service.results.scores import describe_model
from service.results.summary import Summary

GALLERY_SLIDES = 48
"""Most slides in the gallery."""
THUMBNAIL_PX = 260
"""Longer side of a thumbnail."""
TABLE_ROWS = 2000
"""Most rows of a table in the report, so that it stays small for a large cohort; the score table has all rows."""
READ_THREADS = 8
"""Threads that read overlays: each waits for the object store most of the time."""


def render_report(table: pa.Table, summary: Summary) -> bytes:
    """Render the report of a scored cohort.

    Args:
        table: complete score table.
        summary: figures of the table.

    Returns:
        HTML, UTF-8.
    """
    rows = table.drop_columns(["regions"]).to_pylist()
    scored = sorted(
        (row for row in rows if row["status"] == "scored"),
        # Ids decide between equal probabilities, so that the same table always gives the same page.
        key=lambda row: (-row["probability"], row["slide_id"]),
    )
    unscored = sorted(
        (row for row in rows if row["status"] != "scored"), key=lambda row: (row["status"], row["slide_id"])
    )
    model_row = next((row for row in rows if row["model"]), None)
    page = _make_environment().get_template("report.html.j2")
    return page.render(
        summary=summary,
        model=describe_model(model_row) if model_row else "no model",
        min_hit_coverage=MIN_HIT_COVERAGE,
        histogram=draw_histogram(scored) if scored else None,
        gallery=_make_gallery(scored),
        scored=scored[:TABLE_ROWS],
        num_scored=len(scored),
        unscored=unscored[:TABLE_ROWS],
        num_unscored=len(unscored),
        weights=next((row for row in rows if row["model_sha256"]), None),
    ).encode()


def _make_environment() -> Environment:
    """Return the environment of the templates.

    Slide names, reasons and model names come from users' files, so every value is escaped. A name that is missing in
    the template's context is an error: otherwise a misspelt one would leave a gap that nobody sees.
    """
    environment = Environment(
        loader=PackageLoader("service.results"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format,
        "megabytes": lambda num_bytes: num_bytes / 1e6,
        "gigabytes": lambda num_bytes: num_bytes / 1e9,
        "relative_link": _make_relative_link,
    }
    return environment


def _make_gallery(scored: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    """Return the first rows that have an overlay, each with its thumbnail as a data URI."""
    rows = [row for row in scored[:GALLERY_SLIDES] if row["overlay"]]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(zip(rows, pool.map(lambda row: _make_thumbnail(row["overlay"]), rows), strict=True))


def _make_thumbnail(uri: str) -> str:
    """Return an overlay without its text, scaled down, as a data URI; empty if the file was deleted."""
    try:
        data = storage.read_bytes(uri)
    except NotFoundError:
        return ""
    with Image.open(io.BytesIO(data)) as image:
        # Title and scale bar would be illegible at this size.
        thumbnail = image.crop((0, HEAD_PX - GAP_PX, image.width, image.height - FOOT_PX + GAP_PX))
        thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    thumbnail.save(file, "JPEG", quality=72, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _make_relative_link(uri: str) -> str:
    """Return the link from the report to a file of the scoring, which is in a folder next to the report."""
    folder, _, name = uri.rpartition("/")
    return quote(f"{folder.rpartition('/')[2]}/{name}")
