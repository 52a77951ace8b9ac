"""Bearer tokens: each has an owner, a scope and an end. The database holds only their hashes."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from service.errors import MagnetError, NotFoundError, UsageError
from service.queue.tables import Database, tokens

Scope = Literal["read", "submit", "promote", "admin"]
RIGHTS: dict[str, int] = {"read": 0, "submit": 1, "promote": 2, "admin": 3}
"""Each scope includes those before it: read own jobs; submit and cancel them; set aliases of models; everything."""

MOST_TOKENS = 100
"""Valid tokens of one owner."""
PREFIX = "magnet_"
"""Of every token, so that scanners of repositories and our own log masks recognise one."""
USED_EVERY_S = 60.0
"""Seconds between two writes of a token's time of use."""
LOGIN_NOTE = "login"
"""Note of a token that a login made: rotation does not prolong it."""

Within = Callable[[sa.Connection, str], None]
"""What else is written in the transaction that changes a token; called with the connection and the token's id."""


class NoTokenError(MagnetError):
    """There is no valid token. To act: the caller."""


class ForbiddenError(MagnetError):
    """The token does not allow this. To act: the caller, or an administrator."""


class HiddenError(NotFoundError):
    """The object belongs to another user; the answer is that of an object that does not exist. To act: the caller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who sends a request."""

    token_id: str
    owner: str
    scope: str
    groups: frozenset[str] = frozenset()
    """As a login named them; the settings may add more."""
    expires_s: float | None = None
    """When the token expires, in seconds since 1970; None: never."""
    address: str | None = None
    """Of the client."""

    def may(self, scope: str) -> bool:
        """Whether the token has this scope, or a wider one."""
        return RIGHTS[self.scope] >= RIGHTS[scope]

    def require_scope(self, scope: str, what: str = "this") -> None:
        """Refuse a caller whose token is too narrow.

        Raises:
            ForbiddenError: naming the scope that is needed.
        """
        if not self.may(scope):
            raise ForbiddenError(f"{what} needs the scope {scope}; the token has {self.scope}")

    def require_owner(self, owner: str, what: str) -> None:
        """Hide objects of other users.

        Raises:
            NotFoundError: as if it did not exist.
        """
        if owner != self.owner and not self.may("admin"):
            raise HiddenError(f"no {what}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """What is kept of a token; its secret is shown once, when it is made."""

    id: str
    owner: str
    scope: str
    created_s: float
    expires_s: float | None
    revoked_s: float | None
    note: str | None = None
    last_used_s: float | None = None
    groups: tuple[str, ...] = ()


class Tokens:
    """The tokens of a service.

    Args:
        database: of the queue.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def new(
        self,
        owner: str,
        scope: str,
        days: float | None = None,
        *,
        groups: Collection[str] = (),
        note: str | None = None,
        within: Within | None = None,
    ) -> tuple[str, Token]:
        """Make a token: the secret, and what is kept of it.

        Args:
            owner: of the jobs that it makes.
            scope: one of `RIGHTS`.
            days: until it expires; None: never.
            groups: of the owner, as a login named them.
            note: for people.
            within: called in the same transaction.
        """
        with self._database.writing() as connection:
            secret, token = _insert(connection, owner, scope, days, groups, note)
            if within is not None:
                within(connection, token.id)
        return secret, token

    def rotate(
        self, old: Token, grace_s: float, *, max_days: float | None = None, within: Within | None = None
    ) -> tuple[str, Token]:
        """Replace a token by one with the same rights and lifetime; a login's keeps its end.

        Args:
            old: the token.
            grace_s: seconds for which the old one stays valid.
            max_days: of the new one's lifetime; None: any.
            within: called in the same transaction, with the new one's id.
        """
        now_s = time.time()
        since_s = now_s if old.note == LOGIN_NOTE else old.created_s
        days = None if old.expires_s is None else (old.expires_s - since_s) / 86400
        days = max_days if days is None or (max_days is not None and days > max_days) else days
        ends_s = now_s + grace_s if old.expires_s is None else min(old.expires_s, now_s + grace_s)
        with self._database.writing() as connection:
            valid = tokens.c.id == old.id, tokens.c.revoked_s.is_(None)
            if not connection.execute(tokens.update().where(*valid).values(expires_s=ends_s)).rowcount:
                raise NoTokenError("the token was revoked in the meantime")
            secret, token = _insert(connection, old.owner, old.scope, days, old.groups, old.note)
            if within is not None:
                within(connection, token.id)
        return secret, token

    def caller(self, secret: str, address: str | None = None) -> Caller:
        """Whose token this is.

        Args:
            secret: as it was sent.
            address: of the client.

        Raises:
            NoTokenError: it is unknown, revoked or expired.
        """
        # The secret has 256 random bits: a fast hash is as good as a slow one, and a look-up by it leaks nothing.
        with self._database.reading() as connection:
            row = connection.execute(sa.select(tokens).where(tokens.c.sha256 == _digest(secret))).mappings().first()
        now_s = time.time()
        ended = (
            row is None or row["revoked_s"] is not None or (row["expires_s"] is not None and row["expires_s"] < now_s)
        )
        if row is None or ended:
            raise NoTokenError("the token is unknown, revoked or expired")
        if (row["last_used_s"] or 0.0) < now_s - USED_EVERY_S:
            with self._database.writing() as connection:
                connection.execute(tokens.update().where(tokens.c.id == row["id"]).values(last_used_s=now_s))
        return Caller(
            token_id=row["id"],
            owner=row["owner"],
            scope=row["scope"],
            groups=frozenset(json.loads(row["groups"])),
            expires_s=row["expires_s"],
            address=address,
        )

    def all(self, owner: str | None = None) -> list[Token]:
        """Every token, or those of an owner, without secrets."""
        query = sa.select(tokens).order_by(tokens.c.created_s)
        query = query if owner is None else query.where(tokens.c.owner == owner)
        with self._database.reading() as connection:
            return [_token(row) for row in connection.execute(query).mappings()]

    def token(self, token_id: str) -> Token:
        """A token by its id. Raises `NotFoundError`."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(tokens).where(tokens.c.id == token_id)).mappings().first()
        if row is None:
            raise NotFoundError(f"no token {token_id}")
        return _token(row)

    def revoke(self, token_id: str, within: Within | None = None) -> None:
        """End a token at once. Raises `NotFoundError`."""
        with self._database.writing() as connection:
            known = tokens.update().where(tokens.c.id == token_id)
            if not connection.execute(known.values(revoked_s=time.time())).rowcount:
                raise NotFoundError(f"no token {token_id}")
            if within is not None:
                within(connection, token_id)


def _insert(
    connection: sa.Connection, owner: str, scope: str, days: float | None, groups: Collection[str], note: str | None
) -> tuple[str, Token]:
    if scope not in RIGHTS:
        raise UsageError(f"scope {scope!r}: must be one of {', '.join(RIGHTS)}")
    secret, now_s = PREFIX + secrets.token_urlsafe(32), time.time()
    ended = sa.or_(tokens.c.revoked_s.is_not(None), tokens.c.expires_s < now_s)
    count = (
        sa.select(sa.func.count())
        .select_from(tokens)
        .where(tokens.c.owner == owner, sa.not_(sa.func.coalesce(ended, False)))
    )
    if (connection.scalar(count) or 0) >= MOST_TOKENS:
        raise UsageError(
            f"{owner} has {MOST_TOKENS} valid tokens, the most allowed; revoke some: magnet tokens --revoke ID"
        )
    values = {
        "id": secrets.token_hex(6),
        "owner": owner,
        "scope": scope,
        "created_s": now_s,
        "expires_s": None if days is None else now_s + days * 86400,
        "revoked_s": None,
        "note": note,
        "last_used_s": None,
        "groups": json.dumps(sorted(groups)),
    }
    connection.execute(tokens.insert().values(values | {"sha256": _digest(secret)}))
    return secret, _token(values)


def _token(row: sa.RowMapping | dict[str, object]) -> Token:
    values = {name: row[name] for name in Token.__dataclass_fields__}
    return Token(**values | {"groups": tuple(json.loads(str(values["groups"])))})


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
