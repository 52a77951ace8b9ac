"""The score table: parts, reruns, missing and duplicated rows, Parquet and CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from service import storage
from service.cohort.manifest import Slide
from service.results.patients import write_patients
from service.results.scores import (
    REGION,
    SCHEMA,
    ScoresError,
    describe_columns,
    empty_row,
    join_parts,
    read_part,
    read_parts,
    write_part,
    write_table,
)
from service.testing.fake_store import HttpStore


def make_slide(slide_id: str, label: int | None = 1) -> Slide:
    return Slide(row=2, slide_id=slide_id, uri=f"/slides/{slide_id}.svs", patient_id="p", label=label, stratum="macro")


def make_scored(slide: Slide, probability: float = 0.25) -> dict[str, Any]:
    regions = [{"layer": 0, "x_l0": -1.5, "y_l0": 0.0, "side_l0": 100.0, "downsample": 4.0}]
    regions[0] |= {"level": 1, "tissue": 0.5}
    values = {"status": "scored", "probability": probability, "running": [0.5, probability], "call": 0}
    return empty_row(slide) | values | {"regions": regions, "num_regions": 1, "bytes_read": 1234, "requests": 5}


def make_failed(slide: Slide) -> dict[str, Any]:
    return empty_row(slide) | {"status": "failed", "reason": 'torn, "half"\nof it'}


def test_an_empty_row_holds_the_columns_of_the_manifest() -> None:
    row = empty_row(make_slide("a"))
    assert list(row) == SCHEMA.names
    values = {name: value for name, value in row.items() if value is not None}
    assert values == {
        "slide_id": "a",
        "uri": "/slides/a.svs",
        "patient_id": "p",
        "label": 1,
        "stratum": "macro",
        "research_use_only": True,
    }


def test_every_column_has_a_description() -> None:
    assert all(field.metadata[b"what"] for field in [*SCHEMA, *REGION])
    text = describe_columns()
    assert text.startswith("Version 2 ")
    assert all(f"| `{field.name}` |" in text for field in [*SCHEMA, *REGION])


def test_parts_become_one_table_in_the_manifests_order(tmp_path: Path) -> None:
    slides = [make_slide(name) for name in "dacb"]
    out = str(tmp_path)
    write_part(out, [make_scored(slides[3], 0.4), make_failed(slides[0])])
    write_part(out, [make_scored(slides[1], 0.1), make_scored(slides[2], 0.3)])
    table = join_parts(out, slides)
    assert table["slide_id"].to_pylist() == ["d", "a", "c", "b"]
    assert table["probability"].to_pylist() == [None, 0.1, 0.3, 0.4]
    read_back = pq.read_table(tmp_path / "scores.parquet")
    assert read_back.equals(table)
    assert read_back.schema.metadata[b"magnet_scores_version"] == b"2"
    assert all(field.metadata[b"what"] for field in read_back.schema)


def test_the_csv_reads_back(tmp_path: Path) -> None:
    slides = [make_slide("a"), make_slide("b", label=None)]
    write_part(str(tmp_path), [make_scored(slides[0]), make_failed(slides[1])])
    join_parts(str(tmp_path), slides)
    first, second = csv.DictReader(io.StringIO((tmp_path / "scores.csv").read_text()))
    assert list(first) == [name for name in SCHEMA.names if name != "regions"]
    assert (first["slide_id"], first["probability"], first["running"]) == ("a", "0.25", "0.5 0.25")
    # integers remain integers although other rows have nulls
    assert (first["label"], first["call"], first["bytes_read"], first["num_regions"]) == ("1", "0", "1234", "1")
    assert (second["status"], second["reason"]) == ("failed", 'torn, "half"\nof it')
    assert second["label"] == second["call"] == second["probability"] == second["running"] == ""
    assert first["research_use_only"] == "True"


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "\uff1d1"])
def test_a_patient_id_is_not_a_formula_in_csv_and_unchanged_in_parquet(tmp_path: Path, text: str) -> None:
    slide = replace(make_slide("a"), patient_id=text)
    write_part(str(tmp_path), [make_scored(slide)])
    write_patients(str(tmp_path), join_parts(str(tmp_path), [slide]))
    for name in ("scores", "patients"):
        [row] = csv.DictReader(io.StringIO((tmp_path / f"{name}.csv").read_bytes().decode(), newline=""))
        assert row["patient_id"] == f"'{text}"
        assert pq.read_table(tmp_path / f"{name}.parquet")["patient_id"].to_pylist() == [text]


def test_a_rerun_completes_the_finished_parts(tmp_path: Path) -> None:
    slides, out = [make_slide(name) for name in "abc"], str(tmp_path)
    assert len(read_parts(out)) == 0
    write_part(out, [make_scored(slides[0])])
    with pytest.raises(ScoresError, match="slides without a row: b, c; run the same command again") as caught:
        join_parts(out, slides)
    assert caught.value.uri == out
    assert not (tmp_path / "scores.parquet").exists()
    assert read_parts(out)["slide_id"].to_pylist() == ["a"]
    write_part(out, [make_scored(slides[1]), make_failed(slides[2])])
    assert join_parts(out, slides)["status"].to_pylist() == ["scored", "scored", "failed"]
    again = (tmp_path / "scores.parquet").read_bytes()
    join_parts(out, slides)
    assert (tmp_path / "scores.parquet").read_bytes() == again


def test_rows_of_the_same_slides_replace_their_part(tmp_path: Path) -> None:
    slides, out = [make_slide("a"), make_slide("b")], str(tmp_path)
    first = write_part(out, [make_scored(slide, 0.1) for slide in slides])
    assert write_part(out, [make_scored(slide, 0.9) for slide in slides]) == first
    assert join_parts(out, slides)["probability"].to_pylist() == [0.9, 0.9]


def test_duplicated_rows_are_an_error(tmp_path: Path) -> None:
    slides, out = [make_slide("a"), make_slide("b")], str(tmp_path)
    write_part(out, [make_scored(slides[0])])
    write_part(out, [make_scored(slides[0]), make_scored(slides[1])])
    with pytest.raises(ScoresError, match=": slides with several rows: a; run"):
        join_parts(out, slides)


def test_rows_of_other_slides_are_left_out(tmp_path: Path) -> None:
    slides, out = [make_slide("a"), make_slide("b")], str(tmp_path)
    write_part(out, [make_scored(slide) for slide in slides])
    assert join_parts(out, slides[1:])["slide_id"].to_pylist() == ["b"]


def test_tables_are_written_to_an_object_store(store: HttpStore) -> None:
    slides, out = [make_slide("a"), make_slide("b")], "s3://bucket/scores/run1"
    write_part(out, [make_scored(slide) for slide in slides])
    assert join_parts(out, slides)["slide_id"].to_pylist() == ["a", "b"]
    assert storage.exists("s3://bucket/scores/run1/scores.csv")
    assert len(read_parts(out)) == 2


def test_other_files_among_the_parts_are_ignored(tmp_path: Path) -> None:
    write_part(str(tmp_path), [make_scored(make_slide("a"))])
    (tmp_path / "parts" / "notes.txt").write_text("other")
    assert len(read_parts(str(tmp_path))) == 1


def test_a_part_is_found_by_its_slides(tmp_path: Path) -> None:
    slides, out = [make_slide("a"), make_slide("b")], str(tmp_path)
    assert read_part(out, ["a", "b"]) is None
    write_part(out, [make_scored(slide) for slide in slides])
    part = read_part(out, ["a", "b"])
    assert part is not None
    assert part["slide_id"].to_pylist() == ["a", "b"]
    assert read_part(out, ["a"]) is None


def test_a_row_with_an_unknown_status_is_an_error(tmp_path: Path) -> None:
    slides, out = [make_slide("a"), make_slide("b")], str(tmp_path)
    write_part(out, [make_scored(slides[0]), empty_row(slides[1]) | {"status": "lost"}])
    with pytest.raises(ScoresError, match="unknown status lost; known are scored, refused, failed"):
        join_parts(out, slides)


def test_rows_of_another_version_are_an_error(tmp_path: Path) -> None:
    old = SCHEMA.empty_table().replace_schema_metadata({"magnet_scores_version": "1"})
    write_table(str(tmp_path / "parts" / "0.parquet"), old)
    with pytest.raises(ScoresError, match="version 1, this program writes version 2; use a new folder"):
        read_parts(str(tmp_path))
