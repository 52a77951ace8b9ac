"""Commands of the service's operator: api, dispatch, backup, restore, doctor, audit, and the first token."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from service import exit_status
from service.cli import connect, tables
from service.errors import UsageError
from service.operations import backup as archives
from service.operations.doctor import run_checks
from service.operations.serving import create_admin_token, serve_api
from service.operations.serving import run_dispatcher as run_dispatcher
from service.queue.audit import read_export, verify
from service.settings.service import read_service_settings

PAGE_ROWS = 1000
"""Number of rows of the audit log in one request."""


def api(options: argparse.Namespace) -> int:
    """Serve the HTTP API until the process is stopped."""
    serve_api(read_service_settings(options.config, options.set))
    return 0


def dispatch(options: argparse.Namespace) -> int:
    """Run the queue's jobs until the process is stopped."""
    run_dispatcher(read_service_settings(options.config, options.set))
    return 0


def backup(options: argparse.Namespace) -> int:
    """Write the service's state into an archive."""
    manifest = archives.backup(read_service_settings(options.config, options.set), Path(options.file))
    print(f"{options.file}: {', '.join(manifest['members'])}; {manifest['rows']['jobs']} jobs")
    return 0


def restore(options: argparse.Namespace) -> int:
    """Replace the state of a stopped service by an archive's."""
    replaced = archives.restore(read_service_settings(options.config, options.set), Path(options.file))
    print("restored; start the service" + (f". The replaced files are in {replaced}" if replaced else ""))
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Check the service's parts, and print how to fix those that fail."""
    checks = run_checks(read_service_settings(options.config, options.set))
    for check in checks:
        print(check.format())
    failed = [check.name for check in checks if not check.ok]
    print(f"failed checks: {', '.join(failed)}" if failed else "all checks passed")
    return exit_status.FAILED if failed else 0


def create_first_token(options: argparse.Namespace) -> str:
    """Create an administrator's token in the database, as the first token must be, and return its secret.

    Raises:
        UsageError: the scope is not admin, or the lifetime exceeds the maximum in the service's settings.
    """
    if options.scope != "admin":
        raise UsageError(
            "--config creates an administrator's token; add --scope admin, or omit --config to use the API"
        )
    settings = read_service_settings(options.config, options.set)
    max_days = settings.max_token_days or float("inf")
    days = min(settings.token_days, max_days) if options.days is None else options.days
    if days == "never" and settings.max_token_days is None:
        return create_admin_token(settings, options.owner)
    if days == "never" or not 0 < days <= max_days:
        raise UsageError(f"--days {days}: must be above 0 and at most {max_days:g}")
    return create_admin_token(settings, options.owner, days)


def audit(options: argparse.Namespace) -> int:
    """Print the audit log, or verify an export of it."""
    # Needs neither the service nor a token, so that an export can be verified on any machine.
    if options.verify:
        count, digest = verify(read_export(options.verify), None if options.after else "")
        print(f"{count} rows, unchanged; digest of the last row: {digest or 'none'}")
        return 0
    rows, after = [], options.after
    with connect.open_client() as client:
        while lines := client.audit(after=after, limit=PAGE_ROWS):
            # An export may be larger than memory, so each page is printed at once.
            if options.jsonl:
                print("\n".join(lines), flush=True)
            rows += [] if options.jsonl else [_format_row(line) for line in lines]
            after = json.loads(lines[-1])["seq"]
    if rows:
        print(tables.format_table(("N", "AT", "ACTOR", "ADDRESS", "ACTION", "OBJECT", "OUTCOME", "DETAIL"), rows))
    elif not options.jsonl:
        print("the audit log has no rows after this one" if options.after else "the audit log is empty")
    return 0


def _format_row(line: str) -> tuple[str, ...]:
    row = json.loads(line)
    time = f"{datetime.fromtimestamp(row['at_s'], UTC):%Y-%m-%d %H:%M:%S}"
    names = ("actor", "address", "action", "object", "outcome", "detail")
    return str(row["seq"]), time, *(str(row.get(name) or "") for name in names)
