"""What zooms want of whoever reads slides for them, in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from magnet.windows import WindowRequest, Windows
from service.slides.slide import SlideInfo
from service.storage.counters import ReadCounters


class Batch(Protocol):
    """The slides of one zoom batch, opened: each keeps the version that it was opened in."""

    info: list[SlideInfo]
    """What is known of each slide."""
    counters: list[ReadCounters]
    """What the reads of each slide took so far, its opening included."""
    side_px: NDArray[np.float64]
    """(B,) side of each root square in level-0 pixels."""

    def fetch(self, ask: WindowRequest) -> Windows:
        """The windows that show these regions, in their order; a `magnet.windows.Fetch`.

        Raises:
            MagnetError: a slide failed; its `uri` tells which. The others are not concerned and can be asked for again.
        """
        ...


class Reader(Protocol):
    """Opens slides and reads their pixels. Thread-safe."""

    def batch(self, uris: Sequence[str]) -> Batch:
        """The slides of one zoom batch.

        Raises:
            MagnetError: the first that cannot be had or read, by its `uri`.
        """
        ...

    def info(self, uri: str) -> SlideInfo:
        """Size, levels and resolution of a slide.

        Raises:
            MagnetError: it cannot be had or read.
        """
        ...

    def thumbnail(self, uri: str, max_px: int, counters: ReadCounters | None = None) -> NDArray[np.uint8]:
        """The whole slide, uint8 (h, w, 3), the longer side at most `max_px`; what it takes is added to `counters`.

        Raises:
            MagnetError: it cannot be had or read.
        """
        ...
