"""Pixel arrays that reuse memory.

A batch of windows has tens of megabytes and is requested again and again. The kernel provides new memory of that size
page by page, which takes about as long as decoding JPEG tiles. Memory that was used before does not have this cost.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray


class BufferPool:
    """Provides arrays, and reuses their memory once nothing refers to it any more.

    Args:
        max_bytes: limit of the unused memory that is kept; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._free: deque[bytearray] = deque()

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return a writable array with undefined values; views of it keep its memory alive.

        Args:
            shape: shape of the array.

        Returns:
            uint8 array of that shape.
        """
        size = math.prod(shape)
        if not 0 < size <= self._max_bytes:
            return np.empty(shape, dtype=np.uint8)
        memory = self._take(size)
        # A view of a numpy array refers to the ctypes object below, not to the array. The ctypes object is therefore
        # deleted when the last view is deleted.
        holder = (ctypes.c_uint8 * len(memory)).from_buffer(memory)
        weakref.finalize(holder, self._give_back, memory).atexit = False
        return np.frombuffer(memoryview(holder), dtype=np.uint8)[:size].reshape(shape)

    def clear(self) -> None:
        """Free the unused memory."""
        self._free.clear()

    def _take(self, size: int) -> bytearray:
        """Return the smallest suitable free block of at least `size` bytes, or a new one.

        Blocks of more than twice the size are left for larger arrays.
        """
        with self._lock:
            free = [self._free.popleft() for _ in range(len(self._free))]
            suitable = [memory for memory in free if size <= len(memory) <= 2 * size]
            block = min(suitable, key=len, default=None)
            kept_bytes = 0
            for memory in reversed(free):  # the most recently used blocks stay, the rest is freed
                if memory is not block and kept_bytes + len(memory) <= self._max_bytes:
                    kept_bytes += len(memory)
                    self._free.appendleft(memory)
        return bytearray(size) if block is None else block

    def _give_back(self, memory: bytearray) -> None:
        # No lock: the garbage collector may call this while the same thread holds the lock in `_take`.
        self._free.append(memory)
