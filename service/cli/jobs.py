"""Commands of jobs: jobs, show, logs, events, cancel, retry, delete, priority."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime

from service import exit_status
from service.api.response_bodies import JobView
from service.cli import connect, tables
from service.client import Client
from service.client.follow import follow_events
from service.errors import UsageError


def list_jobs(options: argparse.Namespace) -> int:
    """Print a page of the list of jobs."""
    with connect.open_client() as client:
        owner = client.whoami().owner if options.mine else options.owner
        page = client.jobs(
            state=options.state, kind=options.kind, owner=owner, before=options.before, limit=options.limit
        )
    if options.json:
        print(page.model_dump_json(indent=2))
        return 0
    if not page.jobs:
        is_filtered = options.state or options.kind or owner or options.before
        none_yet = "no jobs yet; magnet submit -h says how to submit one"
        print("no such jobs; magnet jobs lists all" if is_filtered else none_yet)
        return 0
    print(tables.format_jobs(page.jobs))
    if page.next is not None:
        print(f"older jobs: magnet jobs --before {page.next}")
    return 0


def show(options: argparse.Namespace) -> int:
    """Print a job with its progress, attempts and links."""
    with connect.open_client() as client, connect.explain_missing_job(options.job):
        job = client.job(connect.find_job_id(client, options.job))
    print(job.model_dump_json(indent=2) if options.json else tables.format_job(job))
    return 0


def logs(options: argparse.Namespace) -> int:
    """Print a job's log."""
    with connect.open_client() as client, connect.explain_missing_job(options.job):
        job_id = connect.find_job_id(client, options.job)
        for text in client.logs(job_id, attempt=options.attempt, follow=options.follow):
            print(text, end="", flush=True)
    return 0


def events(options: argparse.Namespace) -> int:
    """Print a job's events."""
    with connect.open_client() as client, connect.explain_missing_job(options.job):
        job_id = connect.find_job_id(client, options.job)
        for event in follow_events(client, job_id) if options.follow else client.events(job_id):
            time = datetime.fromtimestamp(event.at_s, UTC)
            print(f"{time:%Y-%m-%d %H:%M:%S} UTC  {event.state:10}  {event.text}", flush=True)
    return 0


def cancel(options: argparse.Namespace) -> int:
    """Cancel jobs."""
    with connect.open_client() as client:
        for name in options.job:
            with connect.explain_missing_job(name):
                job = client.cancel(connect.find_job_id(client, name))
            print(f"{job.id}: {job.state}")
    return 0


def retry(options: argparse.Namespace) -> int:
    """Queue a failed or cancelled job again."""
    with connect.open_client() as client, connect.explain_missing_job(options.job):
        job = client.retry(connect.find_job_id(client, options.job))
    print(f"{job.id}: {job.state}")
    return 0


def delete(options: argparse.Namespace) -> int:
    """Delete jobs, after a confirmation."""
    with connect.open_client() as client:
        ids = []
        # All names are checked before the first job is deleted.
        for name in options.job:
            with connect.explain_missing_job(name):
                ids.append(client.job(connect.find_job_id(client, name)).id)
        if not options.yes:
            _confirm(ids)
        for job_id in ids:
            client.delete(job_id)
            print(f"{job_id}: will be deleted within minutes")
    return 0


def prioritise(options: argparse.Namespace) -> int:
    """Change a job's priority."""
    with connect.open_client() as client, connect.explain_missing_job(options.job):
        job = client.prioritise(connect.find_job_id(client, options.job), options.priority)
    print(f"{job.id}: priority {job.priority}")
    return 0


def follow_job(client: Client, job_id: str) -> int:
    """Print a job's log until the job has ended, and return its exit status.

    Args:
        client: client of the service.
        job_id: ID of the job.
    """
    try:
        for text in client.logs(job_id, follow=True):
            print(text, end="", flush=True)
        # The log can end shortly before the queue knows the job's final state.
        job = client.wait(job_id)
    except KeyboardInterrupt:
        connect.warn(f"the job continues; to follow it: magnet logs -f {job_id}; to stop it: magnet cancel {job_id}")
        raise
    print(f"{job.id}: {job.state}{f', {job.reason}' if job.reason else ''}", flush=True)
    return to_exit_status(job)


def to_exit_status(job: JobView) -> int:
    """Return the exit status for a job that has ended.

    Statuses of the last attempt that have a meaning for users are kept; others, such as a signal's, become `FAILED`.
    """
    last = job.attempts[-1].exit_code if job.attempts else None
    if job.state == "done":
        return exit_status.SLIDES_FAILED if last == exit_status.SLIDES_FAILED else exit_status.DONE
    if job.state == "cancelled":
        return exit_status.INTERRUPTED
    # Statuses of signals or of Ray would have another meaning here.
    return last if last in exit_status.FINAL else exit_status.FAILED


def _confirm(ids: list[str]) -> None:
    if not sys.stdin.isatty():
        raise UsageError("no terminal to confirm the deletion; add --yes to delete without confirmation")
    print("\n".join(ids))
    if input(f"delete {len(ids)} job(s) with logs and results? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("not confirmed; nothing was deleted")
