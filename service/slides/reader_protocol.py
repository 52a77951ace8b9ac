"""Interface between the zoom and a reader of slides, in this process or on other nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from magnet.windows import WindowRequest, Windows
from service.slides.slide import SlideInfo
from service.storage.counters import ReadCounters


class Batch(Protocol):
    """The open slides of one zoom batch; each stays in the version in which it was opened."""

    info: list[SlideInfo]
    """Descriptions of the slides."""
    counters: list[ReadCounters]
    """Cost of the reads of each slide so far, including its opening."""
    side_px: NDArray[np.float64]
    """(B,) side of each root square in level-0 pixels."""

    def fetch(self, request: WindowRequest) -> Windows:
        """Read the windows that show these regions, in their order; a `magnet.windows.Fetch`.

        Raises:
            MagnetError: a slide failed, which the error names by `uri`. The other slides can be requested again.
        """
        ...


class Reader(Protocol):
    """Opens slides and reads their pixels. Thread-safe."""

    def batch(self, uris: Sequence[str]) -> Batch:
        """Open the slides of one zoom batch.

        Raises:
            MagnetError: the first slide that cannot be opened, named by `uri`.
        """
        ...

    def info(self, uri: str) -> SlideInfo:
        """Return size, levels and resolution of a slide.

        Raises:
            MagnetError: the slide cannot be opened.
        """
        ...

    def thumbnail(self, uri: str, max_px: int, counters: ReadCounters | None = None) -> NDArray[np.uint8]:
        """Read the whole slide at low resolution.

        Args:
            uri: the slide.
            max_px: limit of the longer side in pixels, 1 or more.
            counters: the cost of the reads is added to these; None discards it.

        Returns:
            uint8 (h, w, 3), the longer of h and w at most `max_px`.

        Raises:
            MagnetError: the slide cannot be opened or read.
        """
        ...
