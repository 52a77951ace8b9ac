"""The table of patients."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from service.cohort.manifest import Slide
from service.results.patients import SCHEMA, write_patients
from service.results.scores import SCHEMA as SLIDES
from service.results.scores import empty_row


def table(*rows: tuple[str, str, int | None, str, float | None]) -> pa.Table:
    filled = []
    for number, (slide_id, patient, label, status, probability) in enumerate(rows):
        slide = Slide(row=number, slide_id=slide_id, uri=f"/{slide_id}", patient_id=patient, label=label)
        call = None if probability is None else int(probability >= 0.5)
        filled.append(empty_row(slide) | {"status": status, "probability": probability, "call": call})
    return pa.Table.from_pylist(filled, schema=SLIDES)


def test_a_patient_has_the_highest_score_of_its_slides(tmp_path: Path) -> None:
    slides = table(
        ("a", "p1", 0, "scored", 0.2),
        ("b", "p2", None, "failed", None),
        ("c", "p1", 1, "scored", 0.7),
        ("d", "p1", 1, "refused", None),
        ("e", "p3", 0, "scored", 0.1),
        ("f", "p3", None, "scored", 0.3),
    )
    patients = {row["patient_id"]: row for row in write_patients(str(tmp_path), slides).to_pylist()}
    assert list(patients) == ["p1", "p2", "p3"]
    first = patients["p1"]
    assert (first["probability"], first["slide_id"], first["call"], first["label"]) == (0.7, "c", 1, 1)
    assert (first["num_slides"], first["scored"], first["refused"], first["failed"]) == (3, 2, 1, 0)
    assert patients["p2"]["probability"] is patients["p2"]["slide_id"] is patients["p2"]["call"] is None
    assert (patients["p3"]["slide_id"], patients["p3"]["label"]) == ("f", None)
    assert sum(row["num_slides"] for row in patients.values()) == 6
    assert pq.read_table(tmp_path / "patients.parquet").to_pylist() == list(patients.values())
    assert (tmp_path / "patients.csv").read_text().splitlines()[0] == ",".join(SCHEMA.names)
