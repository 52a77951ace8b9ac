"""Commands login and logout."""

from __future__ import annotations

import argparse

from service.cli import connect, tables
from service.client.client import Client, ServiceError
from service.client.device_login import device_login
from service.environment import client_settings, keep_client
from service.errors import UsageError


def login(options: argparse.Namespace) -> int:
    """Log in by the provider that the service trusts, and store the token."""
    url = options.url or client_settings().url
    with Client(url, None, report=connect.warn) as client:
        try:
            provider = client.login_offer()
        except ServiceError as error:
            if error.status != 404:
                raise
            raise UsageError(
                f"{client.url} has no login; ask an administrator for a token, set MAGNET_TOKEN"
            ) from error
        made = client.login(device_login(provider.issuer, provider.client_id, show=connect.warn))
        earlier = client_settings()
        keep_client(client.url, made.secret)
        if earlier.from_file and earlier.url == client.url and earlier.token:
            _revoke(client.url, earlier.token)
        print(f"logged in at {client.url} as {made.owner}, scope {made.scope}, until {tables.clock(made.expires_s)}")
    return 0


def _revoke(url: str, token: str) -> None:
    """End a stored token that a new one has replaced."""
    with Client(url, token, patience_s=0) as client:
        try:
            client.revoke(client.whoami().token_id)
        except ServiceError as error:
            if error.status != 401:  # revoked or expired already
                connect.warn(f"the earlier token could not be revoked: {error}; see `magnet tokens`")


def logout(_: argparse.Namespace) -> int:
    """Revoke the stored token and remove it."""
    known = client_settings()
    if not known.from_file:
        raise UsageError("no token of this service is stored on this machine; nothing to log out from")
    with connect.open_client() as client:
        try:
            client.revoke(client.whoami().token_id)
        except ServiceError as error:
            if error.status != 401:  # already revoked or expired
                raise
    keep_client(known.url, None)
    print(f"logged out from {known.url}")
    return 0
