"""Who asks: bearer tokens with a scope and an owner. The database has only their hashes."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import sqlalchemy as sa
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.errors import MagnetError, NotFoundError, UsageError
from service.queue.tables import Database, tokens

Scope = Literal["read", "submit", "admin"]
RIGHTS: dict[str, int] = {"read": 0, "submit": 1, "admin": 2}
"""Each scope has those before it: read one's own jobs, submit and cancel them, see and do everything."""

PREFIX = "magnet_"
"""Of a token, so that scanners of repositories and our own masks know it."""

_BEARER = HTTPBearer(auto_error=False, description="A token of this service.")


class NoTokenError(MagnetError):
    """There is no valid token. To act: whoever asks."""


class ForbiddenError(MagnetError):
    """The token does not allow this. To act: whoever asks, or an administrator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Whose request it is."""

    token_id: str
    owner: str
    scope: str
    groups: frozenset[str] = frozenset()
    """As a login named them; the settings may add more."""

    def may(self, scope: str) -> bool:
        """Whether the token has this scope, or a wider one."""
        return RIGHTS[self.scope] >= RIGHTS[scope]

    def require_owner(self, owner: str, what: str) -> None:
        """Hide what is another one's.

        Raises:
            NotFoundError: as if it did not exist.
        """
        if owner != self.owner and not self.may("admin"):
            raise NotFoundError(f"no {what}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """What is known of a token; the token itself is told once, when it is made."""

    id: str
    owner: str
    scope: str
    created_s: float
    expires_s: float | None
    revoked_s: float | None


class Tokens:
    """The tokens of a service.

    Args:
        database: of the queue.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def new(self, owner: str, scope: str, days: float | None = None) -> tuple[str, Token]:
        """Make a token: the secret, and what is kept of it.

        Args:
            owner: whose jobs it makes.
            scope: one of `RIGHTS`.
            days: until it expires; None: never.
        """
        if scope not in RIGHTS:
            raise UsageError(f"scope {scope!r}: must be one of {', '.join(RIGHTS)}")
        secret, now_s = PREFIX + secrets.token_urlsafe(32), time.time()
        expires_s = None if days is None else now_s + days * 86400
        token = Token(
            id=secrets.token_hex(6), owner=owner, scope=scope, created_s=now_s, expires_s=expires_s, revoked_s=None
        )
        values = {name: getattr(token, name) for name in Token.__dataclass_fields__}
        with self._database.writing() as connection:
            connection.execute(tokens.insert().values(values | {"sha256": _digest(secret)}))
        return secret, token

    def caller(self, secret: str) -> Caller:
        """Whose token this is.

        Raises:
            NoTokenError: it is none, or no longer.
        """
        # The secret has 256 random bits: a fast hash is as good as a slow one, and a look-up by it leaks nothing.
        with self._database.reading() as connection:
            row = connection.execute(sa.select(tokens).where(tokens.c.sha256 == _digest(secret))).mappings().first()
        if row is None or row["revoked_s"] is not None or (row["expires_s"] or float("inf")) < time.time():
            raise NoTokenError("the token is unknown, revoked or expired")
        groups = frozenset(json.loads(row["groups"]))
        return Caller(token_id=row["id"], owner=row["owner"], scope=row["scope"], groups=groups)

    def all(self) -> list[Token]:
        """Every token, without its secret."""
        columns = [tokens.c[name] for name in Token.__dataclass_fields__]
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(*columns).order_by(tokens.c.created_s)).mappings()
            return [Token(**row) for row in rows]

    def revoke(self, token_id: str) -> None:
        """End a token. Raises `NotFoundError`."""
        with self._database.writing() as connection:
            known = tokens.update().where(tokens.c.id == token_id)
            if not connection.execute(known.values(revoked_s=time.time())).rowcount:
                raise NotFoundError(f"no token {token_id}")


def caller_with(scope: Scope) -> Callable[..., Caller]:
    """A dependency of a route: its caller, who has this scope."""

    def caller(
        request: Request, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)] = None
    ) -> Caller:
        if sent is None:
            raise NoTokenError("no token was sent")
        found: Caller = request.app.state.tokens.caller(sent.credentials)
        request.app.state.rate.take(found.token_id)
        if not found.may(scope):
            raise ForbiddenError(f"this wants the scope {scope}, the token has {found.scope}")
        return found

    return caller


Reader = Annotated[Caller, Depends(caller_with("read"))]
Submitter = Annotated[Caller, Depends(caller_with("submit"))]
Admin = Annotated[Caller, Depends(caller_with("admin"))]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
