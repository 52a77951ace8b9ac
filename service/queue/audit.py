"""The audit log: which user did what to which object, from which address, when, and with which result.

Rows are only appended; triggers of the database refuse to change or delete them. Each row's digest is the SHA-256 of
the row and of the digest before it, so that an exported log shows whether a row was changed, removed or inserted.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from service import storage
from service.errors import UsageError
from service.queue.tables import Database, audit

FIRST = ""
"""The digest before the first row."""
FIELDS = ("at_s", "actor", "token_id", "address", "action", "object", "outcome", "detail")
"""Columns that a digest covers, in this order."""
LOCK = 7243003
"""Key of the advisory lock in Postgres: one transaction appends at a time."""
LENGTHS = {"actor": 64, "token_id": 32, "address": 64, "action": 64, "object": 1000, "outcome": 16, "detail": 2000}
"""Longest text of each column in characters, as in `service.queue.tables`."""
PAGE = 1000
"""Number of rows that are read at a time."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class ChainError(UsageError):
    """The audit log was changed. To act: an administrator, who compares it with an older export. No retry helps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """The user who acts."""

    owner: str
    """Name of the user."""
    token_id: str | None = None
    """Id of the token that was used."""
    address: str | None = None
    """Address of the client."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of the audit log."""

    seq: int
    """Number of the row; it grows with each."""
    at_s: float
    """Time in seconds since 1970."""
    actor: str
    """User who acted."""
    token_id: str | None
    """Id of the token that was used."""
    address: str | None
    """Address of the client."""
    action: str
    """What the user did, such as "job.submit"."""
    object: str | None
    """What the action changed, such as the id of a job."""
    outcome: str
    """Result of the action: "ok" or "denied"."""
    detail: str | None
    """Further information in plain text."""
    digest: str
    """SHA-256 of this row and of the digest before it, in hexadecimal."""

    def to_line(self) -> str:
        """Return the row as a line of JSON; an export consists of such lines."""
        return json.dumps(asdict(self), ensure_ascii=True)


def append(
    connection: sa.Connection,
    actor: Actor,
    action: str,
    what: str | None = None,
    *,
    outcome: str = "ok",
    detail: str | None = None,
) -> None:
    """Append a row, in the transaction of the change that it records.

    Call it last in a transaction: it waits until no other transaction appends, and lets none append until the end.

    Args:
        connection: of a `Database.writing` block.
        actor: the user who acts.
        action: such as "job.submit".
        what: the object, such as the id of a job.
        outcome: "ok" or "denied".
        detail: further information in plain text.
    """
    if connection.dialect.name == "postgresql":  # SQLite lets one writer in at a time anyway
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    before = connection.scalar(sa.select(audit.c.digest).order_by(audit.c.seq.desc()).limit(1)) or FIRST
    values: dict[str, Any] = {
        "actor": actor.owner,
        "token_id": actor.token_id,
        "address": actor.address,
        "action": action,
        "object": what,
        "outcome": outcome,
        "detail": detail,
    }
    # Before the digest is computed: it must cover what the database stores.
    values = {name: _printable(value, LENGTHS[name]) for name, value in values.items()} | {"at_s": time.time()}
    connection.execute(audit.insert().values(values | {"digest": digest(values, before)}))


def digest(values: Mapping[str, Any], before: str) -> str:
    """Return the SHA-256 of a row and of the digest before it, in hexadecimal.

    Args:
        values: of the columns in `FIELDS`.
        before: the digest of the row before.
    """
    text = json.dumps([before, *(values[name] for name in FIELDS)], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def page(database: Database, *, after: int = 0, limit: int = PAGE) -> list[Row]:
    """Return the rows after the one with the number `after`, oldest first."""
    query = sa.select(audit).where(audit.c.seq > after).order_by(audit.c.seq).limit(limit)
    with database.reading() as connection:
        return [Row(**row) for row in connection.execute(query).mappings()]


def rows(database: Database, *, after: int = 0) -> Iterator[Row]:
    """Yield all rows after the one with the number `after`, oldest first."""
    while batch := page(database, after=after):
        yield from batch
        after = batch[-1].seq


def read_export(uri: str) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines, as `GET /v1/audit?format=jsonl` sends it.

    Args:
        uri: path or URI of the file.

    Raises:
        UsageError: a line is not a row of an audit log.
    """
    for number, line in enumerate(storage.read_bytes(uri).splitlines(), start=1):
        if line.strip():
            try:
                yield Row(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UsageError(f"line {number} is not a row of an audit log", uri=uri) from error


def verify(chain: Iterable[Row], before: str | None = FIRST) -> tuple[int, str]:
    """Check the chain of digests.

    A log that lost its last rows is a shorter chain, but still a valid one: keep number and digest elsewhere.

    Args:
        chain: rows, oldest first.
        before: digest before the first of them; None: unknown, as in an export that starts later.

    Returns:
        The number of rows, and the last digest.

    Raises:
        ChainError: naming the first row that does not fit.
    """
    count, seq = 0, 0
    for row in chain:
        if row.seq <= seq:
            raise ChainError(f"audit row {row.seq} comes after row {seq}: the order was changed")
        if before is not None and digest(asdict(row), before) != row.digest:
            raise ChainError(f"audit row {row.seq} or the one before it was changed or removed: its digest is wrong")
        count, seq, before = count + 1, row.seq, row.digest
    return count, before or FIRST


def _printable(value: str | None, longest: int) -> str | None:
    """Return the text cut, and without characters that a database or a log viewer cannot hold."""
    return None if value is None else _UNPRINTABLE.sub("?", value)[:longest]
