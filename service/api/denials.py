"""Denied requests in the audit log, at a bounded rate: a flood of them must not fill the database."""

from __future__ import annotations

import logging
import threading

from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from service.api.access import Caller
from service.api.callers import CALLER, HIDDEN
from service.api.limits import Rate, source_of
from service.errors import MagnetError
from service.queue import audit
from service.queue.audit import Actor
from service.queue.tables import Database

log = logging.getLogger(__name__)

DENIED = (401, 403, 429)
"""Statuses that are recorded, in addition to the 404 that hides another user's object."""
PER_SOURCE, IN_ALL = 10, 120
"""Rows a minute of one address or token, and of all."""
NOBODY = "-"
"""Actor of a request without a valid token."""


class Denials:
    """Records denied requests.

    Args:
        database: of the queue.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rates = Rate(PER_SOURCE), Rate(IN_ALL)
        self._lock, self._left_out = threading.Lock(), 0

    async def note(self, status: int, scope: Scope) -> None:
        """Record an answer if it denied something and the rate allows it.

        Args:
            status: of the answer.
            scope: of the request.
        """
        if status not in DENIED and not scope.get(HIDDEN):
            return
        address, caller = scope["client"][0] if scope.get("client") else None, scope.get(CALLER)
        key = caller.token_id if isinstance(caller, Caller) else source_of(address)
        if not (self._rates[0].allow(key) and self._rates[1].allow("all")):
            with self._lock:
                self._left_out += 1
            return
        actor = actor_of(caller) if isinstance(caller, Caller) else Actor(owner=NOBODY, address=address)
        try:
            await run_in_threadpool(self._append, actor, f"{scope['method']} {scope['path']}", status)
        except MagnetError as error:
            log.error("a denied request could not be recorded: %s", error)

    def _append(self, actor: Actor, what: str, status: int) -> None:
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        detail = str(status) + (f"; {left_out} more denied requests were not recorded" if left_out else "")
        with self._database.writing() as connection:
            audit.append(connection, actor, "request.denied", what, outcome="denied", detail=detail)


def actor_of(caller: Caller) -> Actor:
    """The caller, for the audit log."""
    return Actor(owner=caller.owner, token_id=caller.token_id, address=caller.address)
