"""Records of denied requests in the audit log, at a bounded rate: a flood of them must not fill the database."""

from __future__ import annotations

import logging
import threading

from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from service.api.access import CALLER_KEY, HIDDEN_KEY, Caller
from service.api.audit_records import to_actor
from service.api.gate.limits import Rate, to_source
from service.errors import MagnetError
from service.queue import audit
from service.queue.audit import Actor
from service.queue.tables import Database

log = logging.getLogger(__name__)

DENIED = (401, 403, 429)
"""Statuses that are recorded, in addition to the 404 that hides another user's object."""
ROWS_PER_SOURCE, ROWS_PER_SERVICE = 10, 120
"""Maximum rows per minute of one address or token, and of all together."""
ANONYMOUS = "-"
"""Actor of a request without a valid token."""


class Denials:
    """Recorder of denied requests.

    Args:
        database: the queue's database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._source_rate, self._service_rate = Rate(ROWS_PER_SOURCE), Rate(ROWS_PER_SERVICE)
        self._lock, self._num_skipped = threading.Lock(), 0

    async def record(self, status: int, scope: Scope) -> None:
        """Record a response that denied a request, if the rate allows it.

        Args:
            status: HTTP status of the response.
            scope: ASGI scope of the request.
        """
        if status not in DENIED and not scope.get(HIDDEN_KEY):
            return
        address, caller = scope["client"][0] if scope.get("client") else None, scope.get(CALLER_KEY)
        # Users behind one proxy share its address, so a token counts separately where there is one.
        key = caller.token_id if isinstance(caller, Caller) else to_source(address)
        if not (self._source_rate.allow(key) and self._service_rate.allow("all")):
            with self._lock:
                self._num_skipped += 1
            return
        actor = to_actor(caller) if isinstance(caller, Caller) else Actor(owner=ANONYMOUS, address=address)
        try:
            await run_in_threadpool(self._append, actor, f"{scope['method']} {scope['path']}", status)
        except MagnetError as error:
            # The response was sent already, so the failure can only be logged.
            log.error("a denied request could not be recorded: %s", error)

    def _append(self, actor: Actor, what: str, status: int) -> None:
        with self._lock:
            num_skipped, self._num_skipped = self._num_skipped, 0
        detail = str(status) + (f"; {num_skipped} more denied requests were not recorded" if num_skipped else "")
        with self._database.writing() as connection:
            audit.append(connection, actor, "request.denied", what, outcome="denied", detail=detail)
