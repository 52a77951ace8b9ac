"""Rows of the audit log that the routes write."""

from __future__ import annotations

import sqlalchemy as sa

from service.api.access import Caller
from service.queue import audit
from service.queue.audit import Actor
from service.queue.job_rows import Within


def to_actor(caller: Caller) -> Actor:
    """Return the caller as an actor of the audit log."""
    return Actor(owner=caller.owner, token_id=caller.token_id, address=caller.address)


def make_recorder(caller: Caller, action: str, detail: str | None = None) -> Within:
    """Return a function that appends a row to the audit log.

    It runs in the transaction of the change that it records, so that neither exists without the other.

    Args:
        caller: who acts.
        action: what the caller does, such as job.submit.
        detail: more, in plain text.
    """

    # The ID of a new object is known only inside the transaction.
    def record(connection: sa.Connection, object_id: str) -> None:
        audit.append(connection, to_actor(caller), action, object_id, detail=detail)

    return record
