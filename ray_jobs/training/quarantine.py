"""Slides that become unreadable while a training runs: left out from then on, counted, reported, never replaced.

A lost slide leaves its place in the batch empty: its micro-batch continues with the other slides, and the gradient
stays the sum over slides divided by the size of the whole batch, as if the loss of the lost slide were zero. No slide
moves up into the empty place. So no other slide changes its step, its micro-batch or its seed, the result does not
depend on the number of workers, and each step has the same collectives on every worker. After a step all workers have
the same list.

A slide is lost when its own bytes are at fault (`SlideError`) or it no longer exists (`NotFoundError`). A store that
does not answer or refuses the credentials concerns all slides: reads are retried, and then the attempt fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from magnet.windows import Fetch, WindowRequest, Windows
from service.errors import NotFoundError, SlideError, StoppedError


class SlideLostError(Exception):
    """A slide of a batch can no longer be read.

    Args:
        uri: URI of the slide.
        reason: message of the error that the read ended with.
    """

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)
        self.uri, self.reason = uri, reason


class QuarantineError(StoppedError):
    """More slides were lost than the settings allow. To act: the owner of the slides. A retry does not help."""


@contextmanager
def raise_lost(uris: Sequence[str]) -> Iterator[None]:
    """Turn an error about one of these slides into a `SlideLostError` while the context lasts; others pass."""
    try:
        yield
    except (SlideError, NotFoundError) as error:
        if error.uri is None or error.uri not in uris:
            raise
        raise SlideLostError(error.uri, error.message) from error


def fetch_or_lose(fetch: Fetch, uris: Sequence[str]) -> Fetch:
    """Return a `Fetch` that raises `SlideLostError` where one of these slides cannot be read."""

    def guarded(request: WindowRequest) -> Windows:
        with raise_lost(uris):
            return fetch(request)

    return guarded


class Quarantine:
    """The lost slides of a training, the same on every worker.

    Args:
        num_slides: number of slides of the training, validation included.
        share: share of them that may be lost, 0 to 1; one slide always may.
        lost: slides lost in earlier attempts.
    """

    def __init__(self, num_slides: int, share: float, lost: Mapping[str, str] | None = None) -> None:
        # One slide may always be lost: the share of a small cohort would allow none.
        self.budget = max(1, math.floor(num_slides * share))
        self.lost = dict(lost or {})
        """Reason by URI, in the order of discovery."""

    def admit(self, lost: Mapping[str, str], step: int) -> list[str]:
        """Add slides that are left out from now on.

        Args:
            lost: reason by URI.
            step: number of steps done when they were lost.

        Returns:
            URIs of those that were not in quarantine before.
        """
        new = sorted(lost.keys() - self.lost.keys())  # sorted: the same order on all workers
        self.lost |= {uri: f"step {step}: {lost[uri]}" for uri in new}
        return new

    def check(self) -> None:
        """Check that the number of lost slides is within the budget.

        Raises:
            QuarantineError: it is not; the message names all lost slides.
        """
        if len(self.lost) > self.budget:
            lines = "\n  ".join(f"{uri}: {reason}" for uri, reason in self.lost.items())
            raise QuarantineError(
                f"{len(self.lost)} slides became unreadable during the training, compute.quarantine_share allows "
                f"{self.budget}; restore them, or train without them under a new --name:\n  {lines}"
            )
