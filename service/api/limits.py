"""How much one may ask: requests per minute, bytes per request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import MagnetError

MOST_CALLERS = 10_000
"""Whose rates are remembered."""


class TooManyRequestsError(MagnetError):
    """A token asks too often. To act: whoever holds it, more slowly."""


class Rate:
    """A bucket for each caller, refilled steadily, in this process.

    Args:
        per_minute: requests; twice as many in a burst.
        clock: seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._most, self._clock = per_minute / 60, 2.0 * per_minute, clock
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> None:
        """One request of a caller.

        Raises:
            TooManyRequestsError: the bucket is empty.
        """
        with self._lock:
            now_s = self._clock()
            left, since_s = self._left.pop(caller, (self._most, now_s))
            left = min(self._most, left + (now_s - since_s) * self._per_s)
            self._left[caller] = (max(left - 1, 0), now_s)
            if len(self._left) > MOST_CALLERS:
                del self._left[next(iter(self._left))]
        if left < 1:
            raise TooManyRequestsError(f"more than {self._per_s * 60:g} requests a minute")


class BodyLimit:
    """Refuses requests that are larger than allowed, before they are read.

    Args:
        app: what is guarded.
        max_bytes: of a body.
        refuse: answers instead.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, refuse: ASGIApp) -> None:
        self._app, self._max_bytes, self._refuse = app, max_bytes, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it. A body without a length is read first, no further than allowed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        size = int(dict(scope["headers"]).get(b"content-length", b"0") or 0)
        more = size <= self._max_bytes
        while more:
            messages.append(message := await receive())
            size = sum(len(one.get("body", b"")) for one in messages)
            more = message.get("more_body", False) and size <= self._max_bytes
        if size > self._max_bytes:
            await self._refuse(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)
