"""Jobs and other rows as a terminal shows them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from service.api.answers import JobSummary, JobView

REASON_LENGTH = 60
"""Characters of a reason in a list; `magnet show` prints all."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows in columns, without control characters, which a terminal would obey."""
    lines = [head, *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def job_table(jobs: Sequence[JobSummary]) -> str:
    """A line per job: when it was submitted, and how long it has run."""
    now_s = time.time()
    head = ("JOB", "OWNER", "STATE", "PROGRESS", "SUBMITTED", "TOOK", "REASON")
    rows = [
        (
            job.id,
            job.owner,
            job.state,
            progress(job),
            f"{duration(now_s - job.created_s)} ago",
            running_time(job, now_s),
            (job.reason or "")[:REASON_LENGTH],
        )
        for job in jobs
    ]
    return table(head, rows)


def job_details(job: JobView) -> str:
    """A job in full."""
    now_s = time.time()
    lines = [f"{job.id}  {job.state}" + (f": {job.reason}" if job.reason else "")]
    named = {
        "owner": job.owner,
        "made by": job.source,
        "submitted": clock(job.created_s),
        "started": clock(job.started_s),
        "ended": clock(job.ended_s),
        "took": running_time(job, now_s) or None,
        "next attempt": clock(job.due_s) if job.state == "queued" and job.attempt else None,
        "progress": progress(job) or None,
        "sign of life": None if job.beat_s is None or job.ended_s else f"{duration(now_s - job.beat_s)} ago",
        "manifest": job.request["manifest"],
        "MLflow run": job.mlflow_run,
        "results": job.results,
    }
    lines += [f"  {name + ':':14}{_printable(str(value))}" for name, value in named.items() if value is not None]
    for attempt in job.attempts:
        exited = "" if attempt.exit_code is None else f", exit status {attempt.exit_code}"
        reason = f": {attempt.reason}" if attempt.reason else ""
        lines += [f"  attempt {attempt.number} of {job.max_attempts}: {attempt.state}{exited}{reason}"]
        lines += [f"    {attempt.ray_job}"]
    return "\n".join(lines)


def progress(job: JobSummary) -> str:
    """How far a job is, and how long the rest takes."""
    now = job.progress
    if now.total is None or now.done is None:
        return "" if now.activity is None or job.ended_s else now.activity
    text = f"{now.activity or ''} {now.done}/{now.total}".strip()
    if now.eta_s is None or job.ended_s or now.done == now.total:
        return text
    return f"{text}, {duration(now.eta_s)} to go"


def running_time(job: JobSummary, now_s: float) -> str:
    """Time from a job's first start to its end, or until `now_s`; empty before it has started."""
    return "" if job.started_s is None else duration((job.ended_s or now_s) - job.started_s)


def clock(at_s: float | None) -> str | None:
    """A time in seconds since 1970 as date and time of day."""
    return None if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float) -> str:
    """Seconds as 0:07, 2:03:07 or, from two days on, 3 d 4 h."""
    whole = max(0, round(seconds))
    if whole >= 2 * 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
