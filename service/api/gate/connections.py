"""Connections of the API's server: each request must arrive within a time limit, and their number is bounded.

Uvicorn closes idle connections between requests, but waits without limit for a request that has started. The parser is
h11, not httptools: it bounds the size of a request's head, and does constant work for each byte of it.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_S = 5
"""Seconds for which a connection stays open between two requests."""
HEAD_BYTES = 32 << 10
"""Maximum size of a request's head in bytes."""
BODY_MARGIN_S = 2.0
"""Seconds by which the server waits longer for a body than the gate, so that the client gets the gate's response."""


def make_bounded_protocol(timeout_s: float, max_connections: int) -> type[H11Protocol]:
    """Return a protocol class for `uvicorn.Config(http=...)`.

    Args:
        timeout_s: seconds for a request's head, and then for its body.
        max_connections: beyond twice as many, new connections are closed at once. Uvicorn's `limit_concurrency`
            responds to requests beyond `max_connections` itself with 503.
    """

    class BoundedProtocol(H11Protocol):
        """HTTP/1.1 that closes a connection whose request does not arrive in time."""

        _deadline: asyncio.TimerHandle | None = None
        _waits_for: object = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
            super().connection_made(transport)
            if len(self.connections) > 2 * max_connections:
                transport.abort()
                return
            self._waits_for = h11.IDLE
            self._deadline = self.loop.call_later(timeout_s, self._close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._set_deadline()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._set_deadline()
            if self.timeout_keep_alive_task is not None and self._waits_for is h11.IDLE:
                self._cancel()  # no byte of the next request has arrived: uvicorn's keep-alive limit applies

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def _set_deadline(self) -> None:
            """Start the time limit of the part that the client sends next; single bytes do not extend it."""
            state = self.conn.their_state
            if state is self._waits_for:
                return
            self._cancel()
            wait_s = {h11.IDLE: timeout_s, h11.SEND_BODY: timeout_s + BODY_MARGIN_S}.get(state)
            if wait_s is not None and not self.transport.is_closing():
                self._waits_for, self._deadline = state, self.loop.call_later(wait_s, self._close)

        def _cancel(self) -> None:
            self._waits_for = None
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _close(self) -> None:
            self._cancel()
            self.transport.abort()  # close() would wait until the client reads what is buffered for it

    return BoundedProtocol
