"""The scores of patients: of each patient's slides the highest, and which slide it is."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow as pa

from service import storage
from service.results.scores import STATUSES, VERSION, write_csv, write_table

SCHEMA = pa.schema(
    [
        pa.field(name, kind, metadata={"what": what})
        for name, kind, what in (
            ("patient_id", pa.string(), "as in the manifest; a slide's own id where it names no patient"),
            ("label", pa.int8(), "1 if one of the slides is positive, 0 if all are negative; null if unknown"),
            ("num_slides", pa.int32(), "of the patient"),
            ("scored", pa.int32(), "how many of them were scored"),
            ("refused", pa.int32(), "how many were refused"),
            ("failed", pa.int32(), "how many failed"),
            ("probability", pa.float64(), "the highest of the scored slides'; null if none was scored"),
            ("slide_id", pa.string(), "the slide that has it"),
            ("call", pa.int8(), "1 if it reaches the threshold"),
            ("research_use_only", pa.bool_(), "always true: not for diagnosis"),
        )
    ],
    metadata={"magnet_scores_version": VERSION},
)


def patients(table: pa.Table) -> pa.Table:
    """One row per patient of a score table, in the order of their first slides."""
    slides: dict[str, list[dict[str, Any]]] = defaultdict(list)
    columns = ["patient_id", "slide_id", "label", "status", "probability", "call"]
    for row in table.select(columns).to_pylist():
        slides[row["patient_id"]].append(row)
    return pa.Table.from_pylist([_patient(name, rows) for name, rows in slides.items()], schema=SCHEMA)


def write_patients(out: str, table: pa.Table) -> pa.Table:
    """Write `patients.parquet` and `patients.csv` of a score table; what they hold."""
    found = patients(table)
    write_table(storage.join(out, "patients.parquet"), found)
    write_csv(storage.join(out, "patients.csv"), found)
    return found


def _patient(patient_id: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    labels = [row["label"] for row in rows]
    known = None if None in labels else 0
    count = {status: sum(row["status"] == status for row in rows) for status in STATUSES}
    scored = [row for row in rows if row["status"] == "scored"]
    best = max(scored, key=lambda row: row["probability"], default=None)
    return {
        "patient_id": patient_id,
        "label": 1 if 1 in labels else known,
        "num_slides": len(rows),
        **count,
        **({name: best[name] for name in ("probability", "slide_id", "call")} if best else {}),
        "research_use_only": True,
    }
