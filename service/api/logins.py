"""Tokens for users who have logged in at the identity provider."""

from __future__ import annotations

import time

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from service.api.errors import LoginError
from service.api.oidc import LEEWAY_S, Identity
from service.api.tokens import LOGIN_NOTE, Token, Tokens
from service.queue import audit
from service.queue.audit import Actor
from service.queue.tables import used_logins
from service.settings.service import OidcSettings, ServiceSettings


def create_login_token(
    tokens: Tokens, identity: Identity, settings: ServiceSettings, oidc: OidcSettings, address: str | None
) -> tuple[str, Token]:
    """Create a token for a user who has logged in.

    Args:
        tokens: the tokens of the service.
        identity: the user.
        settings: service settings.
        oidc: settings of the provider.
        address: IP address of the client, for the audit log.

    Returns:
        The secret, and the stored data of the token.

    Raises:
        LoginError: the ID token was used before.
    """

    def record(connection: sa.Connection, token_id: str) -> None:
        _require_unused(connection, identity)
        actor = Actor(owner=identity.owner, token_id=token_id, address=address)
        detail = f"{identity.scope}; groups {', '.join(identity.groups)}"
        audit.append(connection, actor, "login", token_id, detail=detail)

    days = min(oidc.session_hours / 24, settings.max_token_days or float("inf"))
    return tokens.create(identity.owner, identity.scope, days, groups=identity.groups, note=LOGIN_NOTE, within=record)


def _require_unused(connection: sa.Connection, identity: Identity) -> None:
    """Note that an ID token is used. Raises `LoginError` if it was used before."""
    now_s = time.time()
    # An expired ID token is refused by its time, so its digest is no longer needed.
    connection.execute(used_logins.delete().where(used_logins.c.until_s < now_s))
    try:
        values = {"digest": identity.digest, "until_s": max(identity.expires_s, now_s) + LEEWAY_S}
        connection.execute(used_logins.insert().values(values))
    except IntegrityError as error:
        raise LoginError("this ID token was used before; log in at the provider again") from error
