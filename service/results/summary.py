"""Summary of a scored cohort in figures, for the terminal and for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from magnet.metrics import Auroc, auroc_by_stratum
from service.results.early_stopping import EarlyStopping, simulate_early_stopping
from service.results.localisation import Localisation
from service.results.scores import count_statuses

SIMULATED_EPS = (0.2, 0.1, 0.05, 0.02, 0.01)
"""Values of ``--stop-when-settled`` whose effect the report shows."""

MEAN_COLUMNS = ("num_regions", "windows", "requests", "bytes_read", "size_bytes", "read_s", "compute_s")
"""Columns of which a summary has the mean."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one scoring."""

    status_counts: Counter[str]
    """Number of slides by status."""
    num_new: int
    """Number of slides that this run read; earlier runs of the same command read the others."""
    seconds: float
    """Duration of this run in seconds."""
    auroc: Mapping[str, Auroc]
    """AUROC by stratum; empty unless both labels occur."""
    mean: Mapping[str, float]
    """Mean per scored slide of each of `MEAN_COLUMNS`; empty if no slide was scored."""
    total_bytes: int
    """Bytes read from all slides, refused and failed ones included."""
    total_requests: int
    """Requests to the store for all slides."""
    ended: Counter[str]
    """Number of scored slides by how their zoom ended."""
    patch_share: float
    """Share of the planned last patches that were read, 0 to 1."""
    early_stopping: tuple[EarlyStopping, ...] = ()
    """Effect of early stopping at each of `SIMULATED_EPS`; empty if it was in use."""
    localisation: Localisation | None = None
    """Agreement of the regions with outlines of lesions, if there are any."""

    @property
    def num_slides(self) -> int:
        """Number of slides in the manifest."""
        return sum(self.status_counts.values())

    @property
    def slides_per_hour(self) -> float | None:
        """Slides per hour of this run; None if it read no slide."""
        return self.num_new / self.seconds * 3600 if self.num_new else None

    def to_lines(self) -> list[str]:
        """Return the summary as a few lines of text."""
        lines = [f"{self.num_slides} slides: {', '.join(f'{n} {status}' for status, n in self.status_counts.items())}"]
        if self.slides_per_hour is not None:
            lines.append(f"{self.num_new} of them in {self.seconds:.0f} s: {self.slides_per_hour:,.0f} slides/h")
        if self.mean:
            mean = self.mean
            lines.append(
                f"per slide: {mean['num_regions']:.0f} regions, {mean['requests']:.0f} requests, "
                f"{mean['bytes_read'] / 1e6:.2f} MB read of {mean['size_bytes'] / 1e6:.2f} MB"
            )
        if self.patch_share < 1:
            ends = ", ".join(f"{n} {how}" for how, n in self.ended.items())
            lines.append(f"ended early: {self.patch_share:.0%} of the last patches read ({ends})")
        for stratum, auroc in self.auroc.items():
            lines.append(f"AUROC {stratum}: {auroc.auroc:.3f}, 95 % interval {auroc.low:.3f} to {auroc.high:.3f}")
        if (localisation := self.localisation) is not None:
            froc = localisation.froc
            lines.append(
                f"lesion hit on {localisation.num_slides_hit} of {localisation.num_slides} slides, "
                f"FROC score {froc.score:.3f} ({froc.num_lesions} lesions)"
            )
        return lines


def summarise(table: pa.Table, num_new: int, seconds: float) -> Summary:
    """Summarise a score table.

    Args:
        table: complete score table.
        num_new: number of slides that this run read.
        seconds: duration of this run in seconds.
    """
    scored = table.filter(pc.equal(table["status"], "scored"))
    rows = scored.drop_columns(["regions"]).to_pylist()
    num_read = [len(row["running"]) for row in rows]
    # Each layer multiplies the number of nodes, so that the product is the number of last patches.
    num_planned = [int(np.prod([int(p) for p in row["schedule"].split(",")])) for row in rows]
    # What early stopping would have done can only be computed from slides that were read completely.
    is_complete = bool(rows) and all(row["ended"] == "complete" for row in rows)
    return Summary(
        status_counts=count_statuses(table),
        num_new=num_new,
        seconds=seconds,
        auroc=_compute_auroc(rows),
        mean={name: float(np.mean([row[name] for row in rows])) for name in MEAN_COLUMNS} if rows else {},
        total_bytes=pc.sum(table["bytes_read"]).as_py() or 0,
        total_requests=pc.sum(table["requests"]).as_py() or 0,
        ended=Counter(row["ended"] for row in rows),
        patch_share=sum(num_read) / sum(num_planned) if rows else 1.0,
        early_stopping=_simulate(rows) if is_complete else (),
    )


def _compute_auroc(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Auroc]:
    labelled = [row for row in rows if row["label"] is not None]
    labels = [row["label"] for row in labelled]
    if not 0 < sum(labels) < len(labels):
        return {}
    strata = [row["stratum"] or "" for row in labelled]
    return auroc_by_stratum(labels, [row["probability"] for row in labelled], strata)


def _simulate(rows: Sequence[Mapping[str, Any]]) -> tuple[EarlyStopping, ...]:
    running, labels = [row["running"] for row in rows], [row["label"] for row in rows]
    # All rows of a scoring come from one model, and so have one threshold.
    return tuple(simulate_early_stopping(running, labels, rows[0]["threshold"], eps) for eps in SIMULATED_EPS)
