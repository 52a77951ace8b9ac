"""The report: what it tells, that it needs nothing else, that it stays small."""

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

from service.results.localisation import localisation
from service.results.report import SHOWN, report
from service.results.scores import SCHEMA
from service.results.summary import findings
from tests.service.results.score_row import scored_row, unscored_row


class Links(HTMLParser):
    """Everything that a page points to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def overlay(folder: Path, slide_id: str) -> dict[str, Any]:
    (folder / "overlays").mkdir(exist_ok=True)
    path = folder / "overlays" / f"{slide_id}.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (900, 900, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return {"overlay": str(path), "picture": f"{folder}/pictures/{slide_id}.jpg"}


def page(folder: Path, rows: list[dict[str, Any]], num_new: int | None = None) -> str:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    found = findings(table, len(rows) if num_new is None else num_new, 60.0)
    outlines = {"a <b>": shapely.box(100, 100, 200, 200)}
    found = replace(found, localisation=localisation(table, outlines))
    return report(table, found, str(folder)).decode()


def test_a_report_tells_what_became_of_a_cohort(tmp_path: Path) -> None:
    rows = [
        scored_row("low", 0.1, 0, **overlay(tmp_path, "low")),
        scored_row("a <b>", 0.9, 1, **overlay(tmp_path, "a <b>")),
        unscored_row("blank", "refused", "blank: no tissue found"),
        unscored_row("torn", "failed", "<script>alert(1)</script>"),
    ]
    text = page(tmp_path, rows)
    for expected in (
        "models:/magnet@champion, version 3",
        "research use only",
        "AUROC",
        "1.000",
        "240",
        "blank: no tissue found",
    ):
        assert expected in text, expected
    assert "<script>" not in text
    assert "a &lt;b&gt;" in text
    assert text.index("a &lt;b&gt;</td>") < text.index("low</td>")  # by probability
    assert re.search(r"<b>2</b>scored.*<b>1</b>refused.*<b>1</b>failed", text)


def test_a_report_needs_nothing_but_the_scorings_own_files(tmp_path: Path) -> None:
    text = page(tmp_path, [scored_row("a <b>", 0.9, **overlay(tmp_path, "a <b>"))])
    links = Links(text).found
    assert "pictures/a%20%3Cb%3E.jpg" in links
    assert [link for link in links if not link.startswith(("data:image/jpeg;base64,", "pictures/", "overlays/"))] == []
    assert "http://" not in text
    assert "https://" not in text


def test_a_report_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    shared = overlay(tmp_path, "s")
    text = page(tmp_path, [scored_row(f"s{n}", n / 100, **shared) for n in range(100)])
    assert text.count("data:image/jpeg") == SHOWN
    assert len(text) < SHOWN * 60_000


def test_a_gallery_picture_shows_the_slide_without_the_text(tmp_path: Path) -> None:
    links = Links(page(tmp_path, [scored_row("s", 0.9, **overlay(tmp_path, "s"))])).found
    data = next(link for link in links if link.startswith("data:"))
    with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as image:
        assert max(image.size) == 260
        assert image.width > image.height  # the head and foot are cut off


@pytest.mark.parametrize("rows", [[unscored_row("a", "failed", "torn")], [scored_row("a", 0.5)]])
def test_a_cohort_without_scores_labels_or_pictures_has_a_report_too(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    text = page(tmp_path, rows, num_new=0)
    assert "slides per hour" not in text
    assert "<h2>Costs</h2>" in text


def test_findings_in_lines() -> None:
    rows = [scored_row("a", 0.9, 1), scored_row("b", 0.2, 0), unscored_row("c", "failed", "torn")]
    found = findings(pa.Table.from_pylist(rows, schema=SCHEMA), 3, 36.0)
    lines = found.lines()
    assert lines[0] == "3 slides: 2 scored, 0 refused, 1 failed"
    assert lines[1] == "3 of them in 36 s: 300 slides/h"
    assert lines[2] == "per slide: 5 regions, 12 requests, 1.00 MB read of 50.00 MB"
    assert lines[3].startswith("AUROC all: 1.000, 95 % interval ")
    assert found.total_bytes == 2_000_000


def test_findings_of_slides_that_ended_early() -> None:
    early = scored_row("a", 0.9, 1) | {"running": [0.9], "ended": "settled"}
    found = findings(pa.Table.from_pylist([early, scored_row("b", 0.2)], schema=SCHEMA), 2, 1.0)
    assert found.patches == pytest.approx(3 / 4)
    assert found.early == ()
    assert "ended early: 75% of the last patches read (1 settled, 1 complete)" in found.lines()
