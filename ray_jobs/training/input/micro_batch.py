"""The two forms of a micro-batch: as it is streamed to a worker, and as the learner takes it.

Shapes: B slides of the micro-batch, K side of a window in pixels.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from magnet.windows import Fetch, Windows
from service.storage.counters import ReadCounters


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Slides of one forward pass and their root views; the form in which a stream delivers them."""

    step: int
    """Number of the step, from 0."""
    index: int
    """Number within the step, from 0."""
    slides: NDArray[np.int64]
    """(B,) indices into the training slides."""
    frames: NDArray[np.int64]
    """(B,) mirrored or rotated frames, 0 to 7."""
    roots: Windows
    """B windows of layer 0, in the slides' own frame; black for a slide that could not be read."""
    lost: Mapping[int, str] = field(default_factory=dict)
    """Reason why a slide's root view could not be read, by the slide's index."""

    def without(self, slides: Container[int]) -> MicroBatch:
        """Return the micro-batch without some slides, and without what is known of lost ones."""
        kept = [n for n, slide in enumerate(self.slides.tolist()) if slide not in slides]
        if len(kept) == len(self.slides):
            return self  # no copy: root views are large
        roots = Windows(pixels=self.roots.pixels[kept], place=self.roots.place[kept], level=self.roots.level[kept])
        return replace(self, slides=self.slides[kept], frames=self.frames[kept], roots=roots, lost={})

    def split(self, size: int) -> list[MicroBatch]:
        """Return the micro-batch in parts of `size` slides, numbered as if the step had been cut that way.

        Args:
            size: slides of a part; a divisor of the number of slides.
        """
        num_parts = len(self.slides) // size
        if num_parts <= 1:
            return [self]
        return [self._part(slice(k * size, (k + 1) * size), self.index * num_parts + k) for k in range(num_parts)]

    def _part(self, rows: slice, index: int) -> MicroBatch:
        roots = Windows(pixels=self.roots.pixels[rows], place=self.roots.place[rows], level=self.roots.level[rows])
        slides = self.slides[rows]
        lost = {slide: reason for slide, reason in self.lost.items() if slide in slides}
        return MicroBatch(self.step, index, slides, self.frames[rows], roots, lost)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInput:
    """A micro-batch whose slides are open; the form in which the learner takes it."""

    index: int
    """Number within the step, from 0; it seeds the random numbers of the zoom."""
    side_px_B: NDArray[np.float64]
    """Side of each slide's root square in level-0 pixels."""
    fetch: Fetch
    """Answers the window requests of the zoom."""
    label_B: Tensor
    """Label of each slide, 0 or 1."""
    uris: Sequence[str] = ()
    """URI of each slide."""
    counters: Sequence[ReadCounters] = ()
    """What the reads of each slide took so far."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """Reason why a slide of the streamed micro-batch was left out, by URI."""
    streamed: MicroBatch | None = None
    """The micro-batch as it was streamed, to be opened again without a slide or in smaller parts; None: never."""
