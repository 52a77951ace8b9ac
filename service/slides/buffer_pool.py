"""Pixel arrays that reuse memory.

A batch of windows is tens of megabytes, asked for again and again. Fresh memory of that size comes from the kernel page
by page, which takes about as long as decoding JPEG tiles does; memory that was used before does not.
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
    """Hands out arrays, and takes their memory back once nothing refers to it any more.

    Args:
        max_bytes: memory kept while nobody uses it; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._free: deque[bytearray] = deque()

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """A writable array that holds anything. Arrays made from it without copying keep its memory alive."""
        size = math.prod(shape)
        if not 0 < size <= self._max_bytes:
            return np.empty(shape, dtype=np.uint8)
        memory = self._take(size)
        # numpy arrays forget the array that they are a view of and remember the ctypes object, whose end is the
        # moment when no array is left
        holder = (ctypes.c_uint8 * len(memory)).from_buffer(memory)
        weakref.finalize(holder, self._give_back, memory).atexit = False
        return np.frombuffer(memoryview(holder), dtype=np.uint8)[:size].reshape(shape)

    def clear(self) -> None:
        """Free what is not in use."""
        self._free.clear()

    def _take(self, size: int) -> bytearray:
        """The smallest free piece that holds `size` bytes and is not far too large, else a new one."""
        with self._lock:
            free = [self._free.popleft() for _ in range(len(self._free))]
            fitting = [memory for memory in free if size <= len(memory) <= 2 * size]
            chosen = min(fitting, key=len, default=None)
            kept = 0
            for memory in reversed(free):  # the latest first
                if memory is not chosen and kept + len(memory) <= self._max_bytes:
                    kept += len(memory)
                    self._free.appendleft(memory)
        return bytearray(size) if chosen is None else chosen

    def _give_back(self, memory: bytearray) -> None:
        self._free.append(memory)  # no lock: the garbage collector may call this in the midst of `_take`
