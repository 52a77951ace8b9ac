"""Limits of callers: requests per minute, and streams that one user follows at once."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.api.errors import TooManyRequestsError

MAX_CALLERS = 10_000
"""Maximum number of callers whose rates are kept; the least recently seen is forgotten first."""


class Rate:
    """A token bucket for each caller, kept in this process.

    Args:
        per_minute: requests per minute; a burst may have twice as many.
        what: what is counted, for the message.
        clock: returns seconds.
    """

    def __init__(self, per_minute: int, what: str = "requests", clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._capacity, self._what, self._clock = per_minute / 60, 2.0 * per_minute, what, clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> None:
        """Count a request of a caller.

        Raises:
            TooManyRequestsError: the caller's bucket is empty.
        """
        if not self.allow(caller):
            raise TooManyRequestsError(f"more than {self._per_s * 60:g} {self._what} a minute")

    def allow(self, caller: str) -> bool:
        """Count a request of a caller; return False if the caller's bucket is empty."""
        with self._lock:
            now_s = self._clock()
            level, since_s = self._buckets.pop(caller, (self._capacity, now_s))
            level = min(self._capacity, level + (now_s - since_s) * self._per_s)
            self._buckets[caller] = (max(level - 1, 0), now_s)  # now the newest entry of the dictionary
            if len(self._buckets) > MAX_CALLERS:
                del self._buckets[next(iter(self._buckets))]
        return level >= 1


class Streams:
    """Number of streams that each user follows, in this process.

    Args:
        max_per_user: maximum number of streams of one user.
    """

    def __init__(self, max_per_user: int) -> None:
        self._max_per_user, self._lock, self._count = max_per_user, threading.Lock(), Counter[str]()

    def count(self, owner: str) -> int:
        """Return the number of streams that a user follows."""
        with self._lock:
            return self._count[owner]

    @contextmanager
    def follow(self, owner: str) -> Iterator[None]:
        """Count one stream of a user while the context lasts.

        Raises:
            TooManyRequestsError: the user follows the maximum number already.
        """
        with self._lock:
            if self._count[owner] >= self._max_per_user:
                raise TooManyRequestsError(
                    f"{owner} follows {self._max_per_user} logs or events at once, which is the maximum; end one, or "
                    "send the request without follow"
                )
            self._count[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._count[owner] -= 1
                if not self._count[owner]:
                    del self._count[owner]


def to_source(address: str | None) -> str:
    """Return the key under which requests of an address are counted.

    Args:
        address: IP address of the client; None: unknown.

    Returns:
        The address, or for IPv6 its network of 64 bits: one host usually owns all addresses of such a network.
    """
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return address or "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
