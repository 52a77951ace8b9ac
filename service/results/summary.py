"""What a scored cohort comes to, in figures: for the terminal and for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from magnet.metrics import Auroc, auroc_by_stratum
from service.results.early_stopping import Stopped, stopped
from service.results.localisation import Localisation
from service.results.scores import status_counts

EPS = (0.2, 0.1, 0.05, 0.02, 0.01)
"""For which `--stop-when-settled` it is told what it would have done."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Figures of a scoring."""

    count: Counter[str]
    """Slides by status."""
    num_new: int
    """Slides that this run read; the others were done before."""
    seconds: float
    """That it took."""
    auroc: Mapping[str, Auroc]
    """By stratum; empty without labels of both kinds."""
    mean: Mapping[str, float]
    """Per scored slide: regions, windows, requests, bytes_read, size_bytes, read_s, compute_s."""
    total_bytes: int
    """Read of all slides, refused and failed ones included."""
    total_requests: int
    ended: Counter[str]
    """Scored slides by how they ended."""
    patches: float
    """Share of the last patches that was read."""
    early: tuple[Stopped, ...] = ()
    """What stopping early would have done; where every slide was scored whole."""
    localisation: Localisation | None = None

    @property
    def num_slides(self) -> int:
        """Of the manifest."""
        return sum(self.count.values())

    @property
    def slides_per_hour(self) -> float | None:
        """Of this run; None where it had nothing to do."""
        return self.num_new / self.seconds * 3600 if self.num_new else None

    def lines(self) -> list[str]:
        """In a few lines of text."""
        lines = [f"{self.num_slides} slides: {', '.join(f'{n} {status}' for status, n in self.count.items())}"]
        if self.slides_per_hour is not None:
            lines.append(f"{self.num_new} of them in {self.seconds:.0f} s: {self.slides_per_hour:,.0f} slides/h")
        if self.mean:
            mean = self.mean
            lines.append(
                f"per slide: {mean['num_regions']:.0f} regions, {mean['requests']:.0f} requests, "
                f"{mean['bytes_read'] / 1e6:.2f} MB read of {mean['size_bytes'] / 1e6:.2f} MB"
            )
        if self.patches < 1:
            early = ", ".join(f"{n} {how}" for how, n in self.ended.items())
            lines.append(f"ended early: {self.patches:.0%} of the last patches read ({early})")
        for name, one in self.auroc.items():
            lines.append(f"AUROC {name}: {one.auroc:.3f}, 95 % interval {one.low:.3f} to {one.high:.3f}")
        if (found := self.localisation) is not None:
            lines.append(
                f"lesion hit on {found.hits} of {found.num_slides} slides, FROC score {found.froc.score:.3f} "
                f"({found.froc.num_lesions} lesions)"
            )
        return lines


def findings(table: pa.Table, num_new: int, seconds: float) -> Findings:
    """Figures of a score table.

    Args:
        table: complete.
        num_new: slides that this run read.
        seconds: that it took.
    """
    good = table.filter(pc.equal(table["status"], "scored"))
    rows = good.drop_columns(["regions"]).to_pylist()
    names = ("num_regions", "windows", "requests", "bytes_read", "size_bytes", "read_s", "compute_s")
    whole = all(row["ended"] == "complete" for row in rows)
    read = [len(row["running"]) for row in rows]
    planned = [int(np.prod([int(p) for p in row["schedule"].split(",")])) for row in rows]
    return Findings(
        count=status_counts(table),
        num_new=num_new,
        seconds=seconds,
        auroc=_auroc(rows),
        mean={name: float(np.mean([row[name] for row in rows])) for name in names} if rows else {},
        total_bytes=pc.sum(table["bytes_read"]).as_py() or 0,
        total_requests=pc.sum(table["requests"]).as_py() or 0,
        ended=Counter(row["ended"] for row in rows),
        patches=sum(read) / sum(planned) if rows else 1.0,
        early=_early(rows) if rows and whole else (),
    )


def _auroc(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Auroc]:
    known = [row for row in rows if row["label"] is not None]
    labels = [row["label"] for row in known]
    if not 0 < sum(labels) < len(labels):
        return {}
    return auroc_by_stratum(labels, [row["probability"] for row in known], [row["stratum"] or "" for row in known])


def _early(rows: Sequence[Mapping[str, Any]]) -> tuple[Stopped, ...]:
    running, labels = [row["running"] for row in rows], [row["label"] for row in rows]
    return tuple(stopped(running, labels, rows[0]["threshold"], eps) for eps in EPS)
