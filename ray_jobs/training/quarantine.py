"""Slides that turn unreadable while a training runs: left out from then on, counted, named, never replaced.

A lost slide leaves its place in the batch empty: the micro-batch goes on with its other slides, and the gradient stays
the sum over slides divided by the whole batch, as if the lost slide's loss were zero. Nothing moves up into the place.
So no other slide changes its step, its micro-batch or its random numbers' seed, the number of workers decides nothing,
and each step has the same collectives on every worker. All workers hold the same list at the end of each step.

A slide is lost when its own bytes are at fault (`SlideError`) or it is gone (`NotFoundError`). A store that does not
answer or refuses the credentials concerns all slides: that is waited for, and then fails the attempt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from magnet.windows import Fetch, WindowRequest, Windows
from service.errors import NotFoundError, SlideError, StoppedError


class SlideLostError(Exception):
    """A slide of a batch cannot be read any more.

    Args:
        uri: of the slide.
        reason: in words.
    """

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)
        self.uri, self.reason = uri, reason


class QuarantineError(StoppedError):
    """More slides were lost than the training may do without. To act: whoever keeps the slides."""


@contextmanager
def losses_of(uris: Sequence[str]) -> Iterator[None]:
    """Context in which what is wrong with one of these slides becomes a `SlideLostError`; other errors pass."""
    try:
        yield
    except (SlideError, NotFoundError) as error:
        if error.uri is None or error.uri not in uris:
            raise
        raise SlideLostError(error.uri, error.message) from error


def watched(fetch: Fetch, uris: Sequence[str]) -> Fetch:
    """A `Fetch` of these slides that raises `SlideLostError` for one of them."""

    def fetch_or_lose(ask: WindowRequest) -> Windows:
        with losses_of(uris):
            return fetch(ask)

    return fetch_or_lose


class Quarantine:
    """The lost slides of a training, the same on every worker.

    Args:
        num_slides: of the training, validation included.
        share: of them that may be lost; one slide always may.
        lost: of earlier attempts.
    """

    def __init__(self, num_slides: int, share: float, lost: Mapping[str, str] | None = None) -> None:
        self.budget = max(1, math.floor(num_slides * share))
        self.lost = dict(lost or {})
        """Why, by the slide's URI, in the order of discovery."""

    def admit(self, lost: Mapping[str, str], step: int) -> list[str]:
        """Leave these slides out from now on.

        Args:
            lost: why, by URI.
            step: at which they were found.

        Returns:
            URIs of those that were not known yet.
        """
        new = sorted(lost.keys() - self.lost.keys())
        self.lost |= {uri: f"step {step}: {lost[uri]}" for uri in new}
        return new

    def check(self) -> None:
        """Go on only within the budget.

        Raises:
            QuarantineError: too many are lost; names all.
        """
        if len(self.lost) > self.budget:
            named = "\n  ".join(f"{uri}: {reason}" for uri, reason in self.lost.items())
            raise QuarantineError(
                f"{len(self.lost)} slides turned unreadable during the training, compute.quarantine_share allows "
                f"{self.budget}; restore them, or train without them under a new --name:\n  {named}"
            )
