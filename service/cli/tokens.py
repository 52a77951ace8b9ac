"""Commands of tokens: token, tokens, rotate, whoami."""

from __future__ import annotations

import argparse
import json
import time

from service.api.response_bodies import TokenView
from service.cli import connect, tables
from service.environment import read_client_settings, write_client_file
from service.errors import UsageError


def create(options: argparse.Namespace) -> int:
    """Create a token through the API, or with --config in the service's database."""
    if options.config or options.set:
        from service.cli.admin import create_first_token  # noqa: PLC0415  (it loads the database and the whole service)

        print(create_first_token(options))
        return 0
    with connect.open_client() as client:
        token = client.new_token(options.owner, options.scope, options.days)
    # On standard error, so that standard output holds the secret alone.
    connect.warn(f"token {token.id} of {token.owner}, scope {token.scope}, expires: {_format_end(token.expires_s)}")
    print(token.secret)
    return 0


def list_or_revoke(options: argparse.Namespace) -> int:
    """Print tokens, or revoke some."""
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
        head = ("ID", "OWNER", "SCOPE", "CREATED", "EXPIRES", "LAST USED", "STATE", "NOTE")
        print(tables.format_table(head, [_format_row(token) for token in tokens]))
    else:
        print("no tokens; magnet token -h says how to create one")
    return 0


def rotate(options: argparse.Namespace) -> int:
    """Replace the token in use by a new one; a token from the client file is replaced there too."""
    settings = read_client_settings()
    if settings.token is None:
        raise UsageError("no token is set; run: magnet login, or set MAGNET_TOKEN")
    if settings.from_file:
        # An unwritable file must be an error before the old token is replaced.
        write_client_file(settings.url, settings.token)
    with connect.open_client() as client:
        token = client.rotate(options.grace_s)
    connect.warn(
        f"token {token.id} replaces the old one, which ends in {options.grace_s:g} s; "
        f"expires: {_format_end(token.expires_s)}"
    )
    if not settings.from_file:
        connect.warn("set MAGNET_TOKEN to the new token:")
        print(token.secret)
        return 0
    try:
        write_client_file(settings.url, token.secret)
    except UsageError:
        connect.warn("the new token could not be stored; set MAGNET_TOKEN to it:")
        print(token.secret)
        raise
    return 0


def whoami(_: argparse.Namespace) -> int:
    """Print the owner of the token in use, and the limits with their usage."""
    with connect.open_client() as client:
        caller = client.whoami()
        print(f"{caller.owner} at {client.url}")
    fields = {
        "scope": caller.scope,
        "groups": ", ".join(caller.groups) or "none",
        "token": caller.token_id,
        "expires": _format_end(caller.expires_s),
    }
    limits = {"queued": caller.queued, "running": caller.running, "recurring": caller.recurring}
    fields |= {name: f"{usage.used} of {usage.limit}" for name, usage in limits.items()}
    for name, value in fields.items():
        print(f"  {name + ':':11}{value}")
    return 0


def _format_row(token: TokenView) -> tuple[str, ...]:
    ended = token.expires_s is not None and token.expires_s < time.time()
    state = "revoked" if token.revoked_s is not None else "expired" if ended else "valid"
    created, used = tables.format_time(token.created_s), tables.format_time(token.last_used_s)
    return (
        token.id,
        token.owner,
        token.scope,
        created or "",
        _format_end(token.expires_s),
        used or "",
        state,
        token.note or "",
    )


def _format_end(expires_s: float | None) -> str:
    return tables.format_time(expires_s) or "never"
