"""Connections of the API's server: each request must arrive in a stated time, and their number is bounded.

Uvicorn closes idle connections between requests, and waits without end for a request that has started. h11 is the
parser, not httptools: it bounds the size of a request's head, and does constant work for each byte of it.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_S = 5
"""Seconds that a connection stays open between two requests."""
HEAD_BYTES = 32 << 10
"""Of a request's head."""
BODY_MARGIN_S = 2.0
"""Seconds by which the server waits longer for a body than the gate, whose answer is kinder."""


def bounded_protocol(timeout_s: float, max_connections: int) -> type[H11Protocol]:
    """A protocol class for `uvicorn.Config(http=...)`.

    Args:
        timeout_s: seconds for a request's head, and then for its body.
        max_connections: beyond twice as many, new ones are closed at once. Requests beyond `max_connections` itself
            are answered with 503 by uvicorn's `limit_concurrency`.
    """

    class BoundedProtocol(H11Protocol):
        """HTTP/1.1 whose requests arrive in time or not at all."""

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
                self._cancel()  # nothing of the next request is here: the keep-alive time counts

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def _set_deadline(self) -> None:
            """Start the time of what the client sends next; it is not prolonged by single bytes."""
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
            self.transport.abort()  # a close would wait for what the client does not read

    return BoundedProtocol
