"""The scores of patients: the highest score of each patient's slides, and the slide that has it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow as pa

from service import storage
from service.results.scores import STATUSES, VERSION, write_csv, write_table

SCHEMA = pa.schema(
    [
        pa.field(name, kind, metadata={"what": description})
        for name, kind, description in (
            ("patient_id", pa.string(), "as in the manifest; the slide's id if the manifest names no patient"),
            ("label", pa.int8(), "1 if one of the slides is positive, 0 if all are negative; null if unknown"),
            ("num_slides", pa.int32(), "number of the patient's slides"),
            ("scored", pa.int32(), "number of slides that were scored"),
            ("refused", pa.int32(), "number of slides that were refused"),
            ("failed", pa.int32(), "number of slides that failed"),
            ("probability", pa.float64(), "highest probability of the scored slides; null if none was scored"),
            ("slide_id", pa.string(), "slide that has this probability"),
            ("call", pa.int8(), "1 if the probability reaches the threshold"),
            ("research_use_only", pa.bool_(), "always true: not for diagnosis"),
        )
    ],
    metadata={"magnet_scores_version": VERSION},
)
"""Columns of the table of patients."""


def summarise_patients(table: pa.Table) -> pa.Table:
    """Return one row per patient of a score table, in the order of the patients' first slides."""
    slides: dict[str, list[dict[str, Any]]] = defaultdict(list)
    columns = ["patient_id", "slide_id", "label", "status", "probability", "call"]
    for row in table.select(columns).to_pylist():
        slides[row["patient_id"]].append(row)
    return pa.Table.from_pylist([_summarise_patient(patient, rows) for patient, rows in slides.items()], schema=SCHEMA)


def write_patients(out: str, table: pa.Table) -> pa.Table:
    """Write `patients.parquet` and `patients.csv` of a score table.

    Returns:
        The table of patients.
    """
    patients = summarise_patients(table)
    write_table(storage.join(out, "patients.parquet"), patients)
    write_csv(storage.join(out, "patients.csv"), patients)
    return patients


def _summarise_patient(patient_id: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    labels = [row["label"] for row in rows]
    # One positive slide makes a patient positive; a patient is negative only if every slide is known to be.
    label_without_positive = None if None in labels else 0
    status_counts = {status: sum(row["status"] == status for row in rows) for status in STATUSES}
    scored = [row for row in rows if row["status"] == "scored"]
    highest = max(scored, key=lambda row: row["probability"], default=None)
    return {
        "patient_id": patient_id,
        "label": 1 if 1 in labels else label_without_positive,
        "num_slides": len(rows),
        **status_counts,
        **({name: highest[name] for name in ("probability", "slide_id", "call")} if highest else {}),
        "research_use_only": True,
    }
