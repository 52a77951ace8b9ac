"""Commands login and logout."""

from __future__ import annotations

import argparse

from service.cli import connect, tables
from service.client import Client, ServiceError
from service.client.device_login import log_in_with_device_code
from service.environment import read_client_settings, write_client_file
from service.errors import UsageError


def login(options: argparse.Namespace) -> int:
    """Log in at the identity provider of the service, and store the token."""
    url = options.url or read_client_settings().url
    with Client(url, None, report=connect.warn) as client:
        try:
            provider = client.login_offer()
        except ServiceError as error:
            if error.status != 404:
                raise
            raise UsageError(
                f"{client.url} has no login; ask an administrator for a token, and set MAGNET_TOKEN to it"
            ) from error
        token = client.login(log_in_with_device_code(provider.issuer, provider.client_id, show=connect.warn))
        earlier = read_client_settings()
        write_client_file(client.url, token.secret)
        # Otherwise the replaced token would stay valid without anyone using it.
        if earlier.from_file and earlier.url == client.url and earlier.token:
            _revoke(client.url, earlier.token)
        end = tables.format_time(token.expires_s)
        print(f"logged in at {client.url} as {token.owner}, scope {token.scope}, until {end}")
    return 0


def _revoke(url: str, token: str) -> None:
    """Revoke a stored token that a new one has replaced."""
    with Client(url, token, patience_s=0) as client:
        try:
            client.revoke(client.whoami().token_id)
        except ServiceError as error:
            if error.status != 401:  # it was revoked or has expired already
                connect.warn(
                    f"the replaced token could not be revoked: {error}; `magnet tokens --revoke ID` revokes it"
                )


def logout(_: argparse.Namespace) -> int:
    """Revoke the stored token, and remove it from this machine."""
    settings = read_client_settings()
    if not settings.from_file:
        raise UsageError("this machine stores no token of this service, so there is nothing to log out from")
    with connect.open_client() as client:
        try:
            client.revoke(client.whoami().token_id)
        except ServiceError as error:
            if error.status != 401:  # it was revoked or has expired already
                raise
    write_client_file(settings.url, None)
    print(f"logged out from {settings.url}")
    return 0
