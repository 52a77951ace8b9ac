"""Commands of watches and schedules."""

from __future__ import annotations

import argparse
import json

from service.api.response_bodies import RecurringView
from service.cli import connect, tables
from service.errors import UsageError


def list_entries(options: argparse.Namespace) -> int:
    """Print watches or schedules."""
    with connect.open_client() as client:
        entries = [entry for entry in client.recurring() if entry.what == options.what]
    if options.json:
        print(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2))
    elif entries:
        print(tables.format_table(("ID", "OWNER", "WHAT", "NEXT", "STATE"), [_format_row(entry) for entry in entries]))
    else:
        print(f"no {_plural(options.what)}; magnet {options.what} -h says how to add one")
    return 0


def remove(options: argparse.Namespace) -> int:
    """Remove a watch or schedule."""
    if not options.id.startswith(f"{options.what}-"):
        raise UsageError(
            f"{options.id!r} is not the ID of a {options.what}: such IDs start with {options.what}-; "
            f"magnet {_plural(options.what)} lists them"
        )
    with connect.open_client() as client:
        client.remove_recurring(options.id)
    print(f"{options.id}: ended")
    return 0


def _plural(what: str) -> str:
    return "watches" if what == "watch" else "schedules"


def _format_row(entry: RecurringView) -> tuple[str, ...]:
    body = entry.body
    job = body.get("job", {})
    job_text = f"{body.get('cron')}  {job.get('kind')} {job.get('manifest')}"  # a damaged entry has an empty body
    what = str(body.get("folder")) if entry.what == "watch" else job_text
    state = f"disabled: {entry.disabled}" if entry.disabled else entry.note or "active; has not run yet"
    return entry.id, entry.owner, what, "" if entry.disabled else tables.format_time(entry.next_s) or "", state
