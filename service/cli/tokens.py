"""Commands of tokens: token, tokens, rotate, whoami."""

from __future__ import annotations

import argparse
import json
import time

from service.api.answers import TokenView
from service.cli import connect, tables
from service.environment import client_settings, keep_client
from service.errors import UsageError


def make(options: argparse.Namespace) -> int:
    """Make a token: by the API, or with the service's settings in its database."""
    if options.config or options.set:
        from service.cli.admin import new_token  # noqa: PLC0415  (it loads the database and the whole service)

        print(new_token(options))
        return 0
    with connect.open_client() as client:
        made = client.new_token(options.owner, options.scope, options.days)
    connect.warn(f"token {made.id} of {made.owner}, scope {made.scope}, expires: {_end(made.expires_s)}")
    print(made.secret)
    return 0


def list_or_revoke(options: argparse.Namespace) -> int:
    """Print tokens, or end some."""
    with connect.open_client() as client:
        if options.revoke:
            for token_id in options.revoke:
                client.revoke(token_id)
                print(f"{token_id}: revoked")
            return 0
        tokens = client.tokens()
    if options.json:
        print(json.dumps([token.model_dump(mode="json") for token in tokens], indent=2))
    elif tokens:
        head = ("ID", "OWNER", "SCOPE", "MADE", "EXPIRES", "LAST USED", "STATE", "NOTE")
        print(tables.table(head, [_row(token) for token in tokens]))
    else:
        print("no tokens; magnet token -h says how to make one")
    return 0


def rotate(options: argparse.Namespace) -> int:
    """Replace the token in use by a new one, in the client file where it came from there."""
    known = client_settings()
    if known.token is None:
        raise UsageError("no token is set; run: magnet login, or set MAGNET_TOKEN")
    if known.from_file:
        keep_client(known.url, known.token)  # fails before the old token is replaced, if the file cannot be written
    with connect.open_client() as client:
        made = client.rotate(options.grace_s)
    connect.warn(
        f"token {made.id} replaces the old one, which ends in {options.grace_s:g} s; expires: {_end(made.expires_s)}"
    )
    if not known.from_file:
        connect.warn("MAGNET_TOKEN still holds the old token; the new one is:")
        print(made.secret)
        return 0
    try:
        keep_client(known.url, made.secret)
    except UsageError:
        connect.warn("the new token could not be stored; keep it:")
        print(made.secret)
        raise
    return 0


def whoami(_: argparse.Namespace) -> int:
    """Print whose token is in use, and the limits in force."""
    with connect.open_client() as client:
        found = client.whoami()
        print(f"{found.owner} at {client.url}")
    shown = {
        "scope": found.scope,
        "groups": ", ".join(found.groups) or "none",
        "token": found.token_id,
        "expires": _end(found.expires_s),
    }
    limits = {"queued": found.queued, "running": found.running, "recurring": found.recurring}
    shown |= {name: f"{usage.used} of {usage.limit}" for name, usage in limits.items()}
    for name, value in shown.items():
        print(f"  {name + ':':11}{value}")
    return 0


def _row(token: TokenView) -> tuple[str, ...]:
    ended = token.expires_s is not None and token.expires_s < time.time()
    state = "revoked" if token.revoked_s is not None else "expired" if ended else "valid"
    made, used = tables.clock(token.created_s), tables.clock(token.last_used_s)
    return token.id, token.owner, token.scope, made or "", _end(token.expires_s), used or "", state, token.note or ""


def _end(expires_s: float | None) -> str:
    return tables.clock(expires_s) or "never"
