"""Routes of login by an OpenID Connect provider."""

from __future__ import annotations

import time
from dataclasses import asdict

import sqlalchemy as sa
from fastapi import APIRouter, Request
from sqlalchemy.exc import IntegrityError

from service.api.access import LOGIN_NOTE, Tokens
from service.api.answers import LoginOffer, NewToken
from service.api.oidc import LEEWAY_S, Identity, LoginError, Provider
from service.api.problems import documented
from service.api.routes.jobs import settings_of
from service.api.views import Login
from service.errors import NotFoundError
from service.queue import audit
from service.queue.audit import Actor
from service.queue.tables import used_logins
from service.settings.service import OidcSettings

router = APIRouter(prefix="/v1/login", tags=["tokens"], responses=documented(404))


@router.get("")
def offer(request: Request) -> LoginOffer:
    """The provider at which users log in."""
    settings = _settings(request)
    return LoginOffer(issuer=settings.issuer, client_id=settings.client_id)


@router.post("", status_code=201)
def login(request: Request, body: Login) -> NewToken:
    """A token for the user of an ID token."""
    settings, provider, tokens = _settings(request), request.app.state.provider, request.app.state.tokens
    assert isinstance(provider, Provider)
    assert isinstance(tokens, Tokens)
    identity = provider.identify(body.id_token, body.nonce)
    address = request.client.host if request.client else None

    def record(connection: sa.Connection, token_id: str) -> None:
        _use_once(connection, identity)
        actor = Actor(owner=identity.owner, token_id=token_id, address=address)
        detail = f"{identity.scope}; groups {', '.join(identity.groups)}"
        audit.append(connection, actor, "login", token_id, detail=detail)

    days = min(settings.session_hours / 24, settings_of(request).max_token_days or float("inf"))
    secret, token = tokens.new(
        identity.owner, identity.scope, days, groups=identity.groups, note=LOGIN_NOTE, within=record
    )
    return NewToken(secret=secret, **asdict(token))


def _use_once(connection: sa.Connection, identity: Identity) -> None:
    """Note that an ID token was used. Raises `LoginError` for one that was used before."""
    now_s = time.time()
    connection.execute(used_logins.delete().where(used_logins.c.until_s < now_s))
    try:
        values = {"digest": identity.digest, "until_s": max(identity.expires_s, now_s) + LEEWAY_S}
        connection.execute(used_logins.insert().values(values))
    except IntegrityError as error:
        raise LoginError("this ID token was used before; log in at the provider again") from error


def _settings(request: Request) -> OidcSettings:
    settings = settings_of(request).oidc
    if settings is None:
        raise NotFoundError("this service has no login; ask an administrator for a token")
    return settings
