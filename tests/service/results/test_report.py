"""The report: its content, that it is one complete file, that it stays small."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely
from PIL import Image

from service.results.localisation import measure_localisation
from service.results.report import GALLERY_SLIDES, TABLE_ROWS, render_report
from service.results.scores import SCHEMA
from service.results.summary import summarise
from tests.service.results.score_row import make_scored_row, make_unscored_row


class LinkParser(HTMLParser):
    """Collects all links of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def write_overlay(folder: Path, slide_id: str) -> dict[str, Any]:
    (folder / "overlays").mkdir(exist_ok=True)
    path = folder / "overlays" / f"{slide_id}.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (900, 900, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return {"overlay": str(path), "picture": f"{folder}/pictures/{slide_id}.jpg"}


def render(rows: list[dict[str, Any]], num_new: int | None = None) -> str:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    summary = summarise(table, len(rows) if num_new is None else num_new, 60.0)
    outlines = {"a <b>": shapely.box(100, 100, 200, 200)}
    return render_report(table, replace(summary, localisation=measure_localisation(table, outlines))).decode()


def test_a_report_shows_scores_metrics_and_reasons(tmp_path: Path) -> None:
    rows = [
        make_scored_row("low", 0.1, 0, **write_overlay(tmp_path, "low")),
        make_scored_row("a <b>", 0.9, 1, **write_overlay(tmp_path, "a <b>")),
        make_unscored_row("blank", "refused", "blank: no tissue found"),
        make_unscored_row("torn", "failed", "<script>alert(1)</script>"),
    ]
    text = render(rows)
    for expected in (
        "models:/magnet@champion, version 3",
        "research use only",
        "AUROC",
        "1.000",
        "240",
        "blank: no tissue found",
    ):
        assert expected in text, expected
    assert text.startswith("<!doctype html>")
    assert "<script>" not in text
    assert "a &lt;b&gt;" in text
    assert text.index("a &lt;b&gt;</td>") < text.index("low</td>")  # sorted by probability
    assert re.search(r"<b>2</b>scored.*<b>1</b>refused.*<b>1</b>failed", text, re.DOTALL)


def test_a_report_links_only_to_files_of_its_scoring(tmp_path: Path) -> None:
    text = render([make_scored_row("a <b>", 0.9, **write_overlay(tmp_path, "a <b>"))])
    links = LinkParser(text).links
    assert "pictures/a%20%3Cb%3E.jpg" in links
    assert [link for link in links if not link.startswith(("data:image/jpeg;base64,", "pictures/", "overlays/"))] == []
    assert "http://" not in text
    assert "https://" not in text


def test_a_report_has_a_limited_number_of_thumbnails(tmp_path: Path) -> None:
    shared = write_overlay(tmp_path, "s")
    text = render([make_scored_row(f"s{n}", n / 100, **shared) for n in range(100)])
    assert text.count("data:image/jpeg") == GALLERY_SLIDES
    assert len(text) < GALLERY_SLIDES * 60_000


def test_a_thumbnail_shows_the_slide_without_title_and_scale_bar(tmp_path: Path) -> None:
    links = LinkParser(render([make_scored_row("s", 0.9, **write_overlay(tmp_path, "s"))])).links
    data = next(link for link in links if link.startswith("data:"))
    with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as image:
        assert max(image.size) == 260
        assert image.width > image.height  # the overlay is square; its head and foot are cropped


@pytest.mark.parametrize("rows", [[make_unscored_row("a", "failed", "torn")], [make_scored_row("a", 0.5)]])
def test_a_cohort_without_scores_labels_or_pictures_has_a_report(rows: list[dict[str, Any]]) -> None:
    text = render(rows, num_new=0)
    assert "slides per hour" not in text
    assert "<h2>Costs</h2>" in text


def test_an_overlay_that_was_deleted_leaves_an_empty_thumbnail(tmp_path: Path) -> None:
    row = make_scored_row(
        "s", 0.9, overlay=str(tmp_path / "overlays" / "gone.jpg"), picture=str(tmp_path / "p" / "s.jpg")
    )
    assert "" in LinkParser(render([row])).links


def test_a_long_cohort_is_cut_with_a_note() -> None:
    text = render([make_scored_row(f"s{n}", n / 3000) for n in range(TABLE_ROWS + 1)])
    assert "The first 2,000 are listed here; scores.csv lists all." in text
    assert text.count("<td>p-s") == TABLE_ROWS


def test_a_summary_has_one_line_per_topic() -> None:
    rows = [make_scored_row("a", 0.9, 1), make_scored_row("b", 0.2, 0), make_unscored_row("c", "failed", "torn")]
    summary = summarise(pa.Table.from_pylist(rows, schema=SCHEMA), 3, 36.0)
    lines = summary.to_lines()
    assert lines[0] == "3 slides: 2 scored, 0 refused, 1 failed"
    assert lines[1] == "3 of them in 36 s: 300 slides/h"
    assert lines[2] == "per slide: 5 regions, 12 requests, 1.00 MB read of 50.00 MB"
    assert lines[3].startswith("AUROC all: 1.000, 95 % interval ")
    assert summary.total_bytes == 2_000_000


def test_a_summary_of_slides_that_ended_early_simulates_nothing() -> None:
    early = make_scored_row("a", 0.9, 1) | {"running": [0.9], "ended": "settled"}
    summary = summarise(pa.Table.from_pylist([early, make_scored_row("b", 0.2)], schema=SCHEMA), 2, 1.0)
    assert summary.patch_share == pytest.approx(3 / 4)
    assert summary.early_stopping == ()
    assert "ended early: 75% of the last patches read (1 settled, 1 complete)" in summary.to_lines()
