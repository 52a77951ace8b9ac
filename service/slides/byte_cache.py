"""A thread-safe cache in memory with a limit in bytes; the least recently used values are evicted first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Values by key, whose sizes together never exceed the limit.

    Args:
        max_bytes: the limit; 0 keeps nothing.
        size_bytes: returns the size of a value in bytes.
    """

    def __init__(self, max_bytes: int, size_bytes: Callable[[Value], int]) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = size_bytes
        self._values: LRUCache[Hashable, Value] = LRUCache(max_bytes, getsizeof=size_bytes)
        self._lock = threading.Lock()  # cachetools leaves locking to its users, and a read changes the order as well

    def get(self, key: Hashable) -> Value | None:
        """Return the value and mark it as most recently used; None if it is not cached."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        """Store a value, unless it alone exceeds the limit."""
        if self._size_bytes(value) > self._max_bytes:  # the library raises an error for such a value
            return
        with self._lock:
            self._values[key] = value

    def drop(self, key: Hashable) -> None:
        """Remove a value if it is cached."""
        with self._lock:
            self._values.pop(key, None)

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._values.clear()
