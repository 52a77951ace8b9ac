"""Bearer tokens: each has an owner, a scope and an end. The database holds only their hashes."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from service.api.access import RIGHTS, Caller
from service.api.errors import NoTokenError
from service.errors import NotFoundError, UsageError
from service.queue.job_rows import Within
from service.queue.tables import Database, tokens
from service.settings.service import ServiceSettings

MAX_TOKENS = 100
"""Maximum number of valid tokens of one owner."""
PREFIX = "magnet_"
"""Start of every secret: secret scanners of repositories and our own log masks recognise it."""
LAST_USE_INTERVAL_S = 60.0
"""Minimum seconds between two writes of a token's last use: a write per request would slow every request down."""
LOGIN_NOTE = "login"
"""Note of a token that a login created: rotation does not extend its lifetime."""
DAY_S = 86400
"""Seconds of a day."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """Stored data of a token; its secret is shown once, when the token is created. Times are seconds since 1970."""

    id: str
    """ID of the token."""
    owner: str
    """User whose requests carry the token."""
    scope: str
    """Scope, a key of `RIGHTS`."""
    created_s: float
    """Time of creation."""
    expires_s: float | None
    """Time at which the token expires; None: never."""
    revoked_s: float | None
    """Time at which the token was revoked; None: it was not."""
    note: str | None = None
    """Purpose, as its creator wrote it."""
    last_used_s: float | None = None
    """Time of the last use, to the minute."""
    groups: tuple[str, ...] = ()
    """Groups of the owner, as a login named them."""


class Tokens:
    """The tokens of a service.

    Args:
        database: the queue's database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        owner: str,
        scope: str,
        days: float | None = None,
        *,
        groups: Collection[str] = (),
        note: str | None = None,
        within: Within | None = None,
    ) -> tuple[str, Token]:
        """Create a token.

        Args:
            owner: user whose jobs the token's requests create.
            scope: a key of `RIGHTS`.
            days: lifetime in days; None: the token never expires.
            groups: groups of the owner, as a login named them.
            note: purpose of the token, for people.
            within: called with the connection and the token's ID, in the same transaction.

        Returns:
            The secret, and the stored data.

        Raises:
            UsageError: the scope is unknown, or the owner has `MAX_TOKENS` valid tokens.
        """
        with self._database.writing() as connection:
            secret, token = _insert(connection, owner, scope, days, groups, note)
            if within is not None:
                within(connection, token.id)
        return secret, token

    def rotate(
        self, old: Token, grace_s: float, *, max_days: float | None = None, within: Within | None = None
    ) -> tuple[str, Token]:
        """Replace a token by a new one with the same rights and lifetime; a login's token keeps its end.

        Args:
            old: the token to replace.
            grace_s: seconds for which the old token stays valid.
            max_days: maximum lifetime of the new token in days; None: no maximum.
            within: called with the connection and the new token's ID, in the same transaction.

        Returns:
            The new secret, and its stored data.

        Raises:
            NoTokenError: the old token was revoked in the meantime.
        """
        now_s = time.time()
        # The session of a login has a fixed end, which a rotation must not extend.
        since_s = now_s if old.note == LOGIN_NOTE else old.created_s
        days = None if old.expires_s is None else (old.expires_s - since_s) / DAY_S
        days = max_days if days is None or (max_days is not None and days > max_days) else days
        ends_s = now_s + grace_s if old.expires_s is None else min(old.expires_s, now_s + grace_s)
        with self._database.writing() as connection:
            # The token may have been revoked after the gate accepted it.
            valid = tokens.c.id == old.id, tokens.c.revoked_s.is_(None)
            if not connection.execute(tokens.update().where(*valid).values(expires_s=ends_s)).rowcount:
                raise NoTokenError("the token was revoked in the meantime")
            secret, token = _insert(connection, old.owner, old.scope, days, old.groups, old.note)
            if within is not None:
                within(connection, token.id)
        return secret, token

    def identify(self, secret: str, address: str | None = None) -> Caller:
        """Return the caller whom a secret belongs to.

        Args:
            secret: the secret, as the client sent it.
            address: IP address of the client.

        Raises:
            NoTokenError: the token is unknown, revoked or expired.
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
        # Reading needs no write lock, so most requests do not wait for other writers.
        if (row["last_used_s"] or 0.0) < now_s - LAST_USE_INTERVAL_S:
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

    def list_tokens(self, owner: str | None = None) -> list[Token]:
        """Return the tokens of an owner, or of all owners where it is None, oldest first."""
        query = sa.select(tokens).order_by(tokens.c.created_s)
        query = query if owner is None else query.where(tokens.c.owner == owner)
        with self._database.reading() as connection:
            return [_to_token(row) for row in connection.execute(query).mappings()]

    def get(self, token_id: str) -> Token:
        """Return a token by its ID. Raises `NotFoundError`."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(tokens).where(tokens.c.id == token_id)).mappings().first()
        if row is None:
            raise NotFoundError(f"no token {token_id}")
        return _to_token(row)

    def revoke(self, token_id: str, within: Within | None = None) -> None:
        """Revoke a token; it is refused from the next request on.

        Args:
            token_id: ID of the token.
            within: called with the connection and the token's ID, in the same transaction.

        Raises:
            NotFoundError: there is no such token.
        """
        with self._database.writing() as connection:
            known = tokens.update().where(tokens.c.id == token_id)
            if not connection.execute(known.values(revoked_s=time.time())).rowcount:
                raise NotFoundError(f"no token {token_id}")
            if within is not None:
                within(connection, token_id)


def choose_lifetime(settings: ServiceSettings, days: float | None, *, is_default: bool) -> float | None:
    """Return the lifetime of a new token in days; None: it never expires.

    Args:
        settings: service settings.
        days: the requested lifetime in days; None: no end.
        is_default: whether the request left the lifetime out.

    Raises:
        UsageError: the lifetime exceeds the service's maximum.
    """
    max_days = settings.max_token_days
    if is_default:
        return settings.token_days if max_days is None else min(settings.token_days, max_days)
    if max_days is not None and (math.inf if days is None else days) > max_days:
        requested = "a token without an end" if days is None else f"days = {days:g}"
        raise UsageError(f"{requested}: tokens of this service expire after at most {max_days:g} days")
    return days


def _insert(
    connection: sa.Connection, owner: str, scope: str, days: float | None, groups: Collection[str], note: str | None
) -> tuple[str, Token]:
    if scope not in RIGHTS:
        raise UsageError(f"scope {scope!r}: must be one of {', '.join(RIGHTS)}")
    secret, now_s = PREFIX + secrets.token_urlsafe(32), time.time()
    ended = sa.or_(tokens.c.revoked_s.is_not(None), tokens.c.expires_s < now_s)
    # Without an end, `expires_s < now` is NULL in SQL, and so is its negation: coalesce counts such a token as valid.
    count = (
        sa.select(sa.func.count())
        .select_from(tokens)
        .where(tokens.c.owner == owner, sa.not_(sa.func.coalesce(ended, False)))
    )
    if (connection.scalar(count) or 0) >= MAX_TOKENS:
        raise UsageError(
            f"{owner} has {MAX_TOKENS} valid tokens, which is the maximum; revoke some: magnet tokens --revoke ID"
        )
    values = {
        "id": secrets.token_hex(6),
        "owner": owner,
        "scope": scope,
        "created_s": now_s,
        "expires_s": None if days is None else now_s + days * DAY_S,
        "revoked_s": None,
        "note": note,
        "last_used_s": None,
        "groups": json.dumps(sorted(groups)),
    }
    connection.execute(tokens.insert().values(values | {"sha256": _digest(secret)}))
    return secret, _to_token(values)


def _to_token(row: sa.RowMapping | dict[str, object]) -> Token:
    values = {name: row[name] for name in Token.__dataclass_fields__}
    return Token(**values | {"groups": tuple(json.loads(str(values["groups"])))})


def _digest(secret: str) -> str:
    # A header may hold bytes that are no valid text; they must be refused as an unknown token, not fail to encode.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
