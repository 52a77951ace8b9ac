"""Jobs and tables as text for a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from service.api.response_bodies import JobSummary, JobView

REASON_LENGTH = 60
"""Maximum number of characters of a reason in a list; `magnet show` prints all of it."""


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows in columns of equal width.

    Args:
        head: names of the columns.
        rows: cells of each row; control characters are replaced.
    """
    lines = [head, *([_replace_control(cell) for cell in row] for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def format_jobs(jobs: Sequence[JobSummary]) -> str:
    """Return a table of jobs, one line per job."""
    now_s = time.time()
    head = ("JOB", "OWNER", "STATE", "PROGRESS", "SUBMITTED", "TOOK", "REASON")
    rows = [
        (
            job.id,
            job.owner,
            job.state,
            format_progress(job),
            f"{format_duration(now_s - job.created_s)} ago",
            format_running_time(job, now_s),
            (job.reason or "")[:REASON_LENGTH],
        )
        for job in jobs
    ]
    return format_table(head, rows)


def format_job(job: JobView) -> str:
    """Return a job with its progress, attempts and links."""
    now_s = time.time()
    lines = [f"{job.id}  {job.state}" + (f": {job.reason}" if job.reason else "")]
    fields = {
        "owner": job.owner,
        "submitted by": job.source,
        "submitted": format_time(job.created_s),
        "started": format_time(job.started_s),
        "ended": format_time(job.ended_s),
        "took": format_running_time(job, now_s) or None,
        # Only a retry waits for a stated time.
        "next attempt": format_time(job.due_s) if job.state == "queued" and job.attempt else None,
        "progress": format_progress(job) or None,
        "heartbeat": None if job.beat_s is None or job.ended_s else f"{format_duration(now_s - job.beat_s)} ago",
        "manifest": job.request["manifest"],
        "MLflow run": job.mlflow_run,
        "results": job.results,
    }
    lines += [f"  {name + ':':14}{_replace_control(str(value))}" for name, value in fields.items() if value is not None]
    for attempt in job.attempts:
        status = "" if attempt.exit_code is None else f", exit status {attempt.exit_code}"
        reason = f": {attempt.reason}" if attempt.reason else ""
        lines += [f"  attempt {attempt.number} of {job.max_attempts}: {attempt.state}{status}{reason}"]
        lines += [f"    {attempt.ray_job}"]
    return "\n".join(lines)


def format_progress(job: JobSummary) -> str:
    """Return how far a job is, and the estimated remaining time."""
    progress = job.progress
    if progress.total is None or progress.done is None:
        return "" if progress.activity is None or job.ended_s else progress.activity
    text = f"{progress.activity or ''} {progress.done}/{progress.total}".strip()
    if progress.eta_s is None or job.ended_s or progress.done == progress.total:
        return text
    return f"{text}, {format_duration(progress.eta_s)} to go"


def format_running_time(job: JobSummary, now_s: float) -> str:
    """Return the time from a job's first start to its end, or to `now_s`; empty before it has started."""
    return "" if job.started_s is None else format_duration((job.ended_s or now_s) - job.started_s)


def format_time(at_s: float | None) -> str | None:
    """Return a time in seconds since 1970 as date and time of day in UTC; None stays None."""
    return None if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def format_duration(seconds: float) -> str:
    """Return seconds as 0:07, 2:03:07 or, from two days on, 3 d 4 h."""
    whole_s = max(0, round(seconds))
    if whole_s >= 2 * 86400:
        return f"{whole_s // 86400} d {whole_s % 86400 // 3600} h"
    minutes, rest = divmod(whole_s, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _replace_control(text: str) -> str:
    # A terminal would execute control characters, and reasons may quote text of other programs.
    return "".join(c if c.isprintable() else "?" for c in text)
