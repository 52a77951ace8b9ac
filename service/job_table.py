"""Jobs as a terminal shows them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from service.api.views import JobSummary, JobView

HEAD = ("JOB", "OWNER", "STATE", "PROGRESS", "AGE", "REASON")


def table(jobs: Sequence[JobSummary]) -> str:
    """A line per job."""
    if not jobs:
        return "no jobs"
    rows = [HEAD, *((j.id, j.owner, j.state, progress(j), _age(j), (j.reason or "")[:60]) for j in jobs)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def details(job: JobView) -> str:
    """A job in full."""
    lines = [f"{job.id}  {job.state}" + (f": {job.reason}" if job.reason else "")]
    named = {
        "owner": job.owner,
        "made by": job.source,
        "submitted": _clock(job.created_s),
        "started": _clock(job.started_s),
        "ended": _clock(job.ended_s),
        "next attempt": _clock(job.due_s) if job.state == "queued" and job.attempt else None,
        "progress": progress(job) or None,
        "sign of life": None if job.beat_s is None or job.ended_s else f"{time.time() - job.beat_s:.0f} s ago",
        "manifest": job.request["manifest"],
        "MLflow run": job.mlflow_run,
        "results": job.results,
    }
    lines += [f"  {name + ':':14}{value}" for name, value in named.items() if value is not None]
    for one in job.attempts:
        ended = f"{one.state}, exit status {one.exit_code}" if one.exit_code is not None else one.state
        reason = f": {one.reason}" if one.reason else ""
        lines += [f"  attempt {one.number} of {job.max_attempts}: {ended}{reason}", f"    {one.ray_job}"]
    return "\n".join(lines)


def progress(job: JobSummary) -> str:
    """How far it is, and how long it will take."""
    how = job.progress
    if how.total is None or how.done is None:
        return "" if how.activity is None or job.ended_s else how.activity
    text = f"{how.activity or ''} {how.done}/{how.total}".strip()
    if how.eta_s is None or job.ended_s or how.done == how.total:
        return text
    return f"{text}, {_duration(how.eta_s)} to go"


def _age(job: JobSummary) -> str:
    return _duration((job.ended_s or time.time()) - job.created_s)


def _clock(at_s: float | None) -> str | None:
    return None if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
