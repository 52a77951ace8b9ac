"""Commands of the service's operator: api, dispatch, doctor, audit, the first token."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from service import exit_status
from service.cli import connect, tables
from service.errors import UsageError
from service.operations.backup import backup as write_backup
from service.operations.backup import restore as restore_backup
from service.operations.doctor import run_checks
from service.operations.serving import admin_token, serve_api
from service.operations.serving import dispatch as run_dispatcher
from service.queue.audit import read_export, verify
from service.settings.service import service_settings

PAGE = 1000
"""Rows of the audit log in one request."""


def api(options: argparse.Namespace) -> int:
    """Serve the HTTP API."""
    serve_api(service_settings(options.config, options.set))
    return 0


def dispatch(options: argparse.Namespace) -> int:
    """Run the jobs of the queue."""
    run_dispatcher(service_settings(options.config, options.set))
    return 0


def backup(options: argparse.Namespace) -> int:
    """Write the service's state into an archive."""
    manifest = write_backup(service_settings(options.config, options.set), Path(options.file))
    print(f"{options.file}: {', '.join(manifest['members'])}; {manifest['rows']['jobs']} jobs")
    return 0


def restore(options: argparse.Namespace) -> int:
    """Replace a stopped service's state."""
    replaced = restore_backup(service_settings(options.config, options.set), Path(options.file))
    print("restored; start the service" + (f". What it replaced: {replaced}" if replaced else ""))
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Check the service's parts."""
    checks = run_checks(service_settings(options.config, options.set))
    for check in checks:
        print(check.line())
    failed = [check.name for check in checks if not check.ok]
    print(f"failed checks: {', '.join(failed)}" if failed else "all checks passed")
    return exit_status.FAILED if failed else 0


def new_token(options: argparse.Namespace) -> str:
    """The secret of an admin's token that is written into the database, as the first one must be.

    Raises:
        UsageError: another scope is asked for, or more days than the service's settings allow.
    """
    if options.scope != "admin":
        raise UsageError("--config makes an admin's token; add --scope admin, or leave --config out to ask the service")
    settings = service_settings(options.config, options.set)
    most = settings.max_token_days or float("inf")
    days = min(settings.token_days, most) if options.days is None else options.days
    if days == "never" and settings.max_token_days is None:
        return admin_token(settings, options.owner)
    if days == "never" or not 0 < days <= most:
        raise UsageError(f"--days {days}: must be above 0 and at most {most:g}")
    return admin_token(settings, options.owner, days)


def audit(options: argparse.Namespace) -> int:
    """Print the audit log, or check an export of it."""
    if options.verify:
        count, digest = verify(read_export(options.verify), None if options.after else "")
        print(f"{count} rows, unchanged; digest of the last: {digest or 'none'}")
        return 0
    rows, after = [], options.after
    with connect.open_client() as client:
        while lines := client.audit(after=after, limit=PAGE):
            if options.jsonl:
                print("\n".join(lines), flush=True)
            rows += [] if options.jsonl else [_row(line) for line in lines]
            after = json.loads(lines[-1])["seq"]
    if rows:
        print(tables.table(("N", "AT", "ACTOR", "ADDRESS", "ACTION", "OBJECT", "OUTCOME", "DETAIL"), rows))
    elif not options.jsonl:
        print("no rows after this one" if options.after else "the audit log is empty")
    return 0


def _row(line: str) -> tuple[str, ...]:
    row = json.loads(line)
    at = f"{datetime.fromtimestamp(row['at_s'], UTC):%Y-%m-%d %H:%M:%S}"
    names = ("actor", "address", "action", "object", "outcome", "detail")
    return str(row["seq"]), at, *(str(row.get(name) or "") for name in names)
