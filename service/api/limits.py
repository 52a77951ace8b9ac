"""Limits of callers: requests per minute, and logs or events that one user follows at once."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import MagnetError

MOST_CALLERS = 10_000
"""Callers whose rates are remembered."""


class TooManyRequestsError(MagnetError):
    """A caller asks too often, or follows too much at once. To act: the caller, later."""


class Rate:
    """A bucket for each caller, refilled steadily, in this process.

    Args:
        per_minute: requests; twice as many in a burst.
        what: that is counted, for the message.
        clock: seconds.
    """

    def __init__(self, per_minute: int, what: str = "requests", clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._most, self._what, self._clock = per_minute / 60, 2.0 * per_minute, what, clock
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> None:
        """One request of a caller.

        Raises:
            TooManyRequestsError: the bucket is empty.
        """
        if not self.allow(caller):
            raise TooManyRequestsError(f"more than {self._per_s * 60:g} {self._what} a minute")

    def allow(self, caller: str) -> bool:
        """Take one from a caller's bucket; False: it is empty."""
        with self._lock:
            now_s = self._clock()
            left, since_s = self._left.pop(caller, (self._most, now_s))
            left = min(self._most, left + (now_s - since_s) * self._per_s)
            self._left[caller] = (max(left - 1, 0), now_s)
            if len(self._left) > MOST_CALLERS:
                del self._left[next(iter(self._left))]
        return left >= 1


class Followed:
    """Streams that each user follows at the moment, in this process.

    Args:
        most: of one user.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock, self._count = most, threading.Lock(), Counter[str]()

    def count(self, owner: str) -> int:
        """Streams that a user follows."""
        with self._lock:
            return self._count[owner]

    @contextmanager
    def following(self, owner: str) -> Iterator[None]:
        """Hold one of a user's places while the block runs.

        Raises:
            TooManyRequestsError: the user has no place left.
        """
        with self._lock:
            if self._count[owner] >= self._most:
                raise TooManyRequestsError(
                    f"{owner} follows {self._most} logs or events at once; end one, or ask without follow"
                )
            self._count[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._count[owner] -= 1
                if not self._count[owner]:
                    del self._count[owner]


def source_of(address: str | None) -> str:
    """The key under which requests of an address are counted: an IPv6 network of 64 bits is one source."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return address or "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
