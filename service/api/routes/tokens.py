"""Routes of tokens: users see, rotate and revoke their own; administrators make them, and see and revoke all."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Path, Request

from service.api.access import Token, Tokens
from service.api.answers import NewToken, TokenView
from service.api.callers import Admin, Reader, hidden
from service.api.denials import actor_of
from service.api.problems import documented
from service.api.routes.jobs import settings_of
from service.api.views import TokenRequest, TokenRotation
from service.errors import UsageError
from service.queue import audit
from service.settings.service import ServiceSettings

router = APIRouter(prefix="/v1/tokens", tags=["tokens"], responses=documented(404))


@router.post("", status_code=201)
def new(request: Request, caller: Admin, body: TokenRequest) -> NewToken:
    """Make a token; its secret is shown only now."""
    days = _days(settings_of(request), body)

    def record(connection: sa.Connection, token_id: str) -> None:
        detail = f"{body.scope} for {body.owner}, " + ("no end" if days is None else f"{days:g} days")
        audit.append(connection, actor_of(caller), "token.create", token_id, detail=detail)

    return _new(*_tokens(request).new(body.owner, body.scope, days, note=body.note, within=record))


@router.get("")
def listed(request: Request, caller: Reader) -> list[TokenView]:
    """Tokens without their secrets: one's own, or for admins all."""
    return [TokenView(**asdict(token)) for token in _tokens(request).all(None if caller.may("admin") else caller.owner)]


@router.post("/rotate", status_code=201)
def rotate(request: Request, caller: Reader, body: TokenRotation) -> NewToken:
    """Replace the token that this request carries; the old secret stays valid for `grace_s` seconds."""

    def record(connection: sa.Connection, token_id: str) -> None:
        detail = f"replaces {caller.token_id}, which ends in {body.grace_s:g} s"
        audit.append(connection, actor_of(caller), "token.rotate", token_id, detail=detail)

    old = _tokens(request).token(caller.token_id)
    most = settings_of(request).max_token_days
    return _new(*_tokens(request).rotate(old, body.grace_s, max_days=most, within=record))


@router.delete("/{token_id}", status_code=204)
def revoke(request: Request, caller: Reader, token_id: Annotated[str, Path(pattern=r"^[0-9a-f]{12}$")]) -> None:
    """End a token at once: one's own, or for admins any."""

    def record(connection: sa.Connection, _: str) -> None:
        audit.append(connection, actor_of(caller), "token.revoke", token_id)

    with hidden(request):
        caller.require_owner(_tokens(request).token(token_id).owner, f"token {token_id}")
    _tokens(request).revoke(token_id, record)


def _days(settings: ServiceSettings, body: TokenRequest) -> float | None:
    """Days until the token expires. Raises `UsageError` beyond what the service allows."""
    most = settings.max_token_days
    if "days" not in body.model_fields_set:
        return settings.token_days if most is None else min(settings.token_days, most)
    if most is not None and (math.inf if body.days is None else body.days) > most:
        asked = "a token without end" if body.days is None else f"days = {body.days:g}"
        raise UsageError(f"{asked}: this service's tokens expire after at most {most:g} days")
    return body.days


def _new(secret: str, token: Token) -> NewToken:
    return NewToken(secret=secret, **asdict(token))


def _tokens(request: Request) -> Tokens:
    tokens: Tokens = request.app.state.tokens
    return tokens
