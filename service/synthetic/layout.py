"""Layout of a slide: pieces of tissue on the glass, and candidates (the lesion and its decoys) in the tissue.

Lengths are level-0 pixels. They scale with the slide's side, so that a slide of 8,192 px and one of 100,000 px look the
same at low power. Candidates have a least radius, below which their texture could not be recognised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RADIUS_SHARES = {"macro": (2 / 32, 3 / 32), "micro": (3 / 128, 5 / 128), "itc": (1 / 256, 1 / 128)}
"""Smallest and largest radius of a candidate as shares of the slide's side."""

RADIUS_FLOORS_PX = {"macro": 256, "micro": 160, "itc": 96}
"""Least radius of a candidate."""

MPP = 0.25
"""Micrometres per level-0 pixel."""

CAPSULE_SHARE = 0.007
"""Width of the stroma around a piece of tissue as a share of the slide's side."""

MIN_SIDE_PX = 2048
"""Smallest side: on a smaller slide, the smallest macro lesion would not fit into the tissue."""

MAX_SIDE_PX = 120_000
"""Largest side."""

_NUM_ANGLES = 720
_MAX_PIECES = 4
_TISSUE_SHARES = (0.18, 0.26)
"""Smallest and largest share of the slide that is tissue."""
_GAP_SHARE = 0.012
"""Least distance between two pieces, two candidates, or a candidate and the border of its piece, as a share of the
slide's side."""


@dataclass(frozen=True)
class Blob:
    """A star-shaped outline: ``log(r / radius)`` is a sum of waves in the angle."""

    x: float
    """Centre."""
    y: float
    """Centre."""
    radius: float
    """Radius of the circle that the waves deform."""
    waves: NDArray[np.complex128]
    """Amplitude and phase of the waves with 2, 3, ... periods around the outline, (K,)."""

    @cached_property
    def _outline(self) -> tuple[Floats, Floats, Floats]:
        """Angles in radians around the centre, and radius and relative slope of the outline at each."""
        angle = np.linspace(-np.pi, np.pi, _NUM_ANGLES + 1)
        periods = np.arange(2, 2 + len(self.waves))
        turned = self.waves * np.exp(1j * angle[:, None] * periods)
        return angle, self.radius * np.exp(turned.real.sum(1)), -(turned.imag * periods).sum(1)

    def depth(self, x: Floats, y: Floats) -> Floats:
        """Return how far points are inside the outline, to first order; negative outside."""
        around, radius, slope = self._outline
        angle = np.arctan2(y - self.y, x - self.x)
        inside = np.interp(angle, around, radius) - np.hypot(x - self.x, y - self.y)
        return inside / np.hypot(1, np.interp(angle, around, slope))

    @property
    def reach(self) -> float:
        """Largest distance between the outline and the centre."""
        return float(self._outline[1].max())


@dataclass(frozen=True)
class Candidate:
    """A dark blob: the lesion, or a decoy that looks the same at low power."""

    blob: Blob
    """Its outline."""
    size: str
    """Stratum whose range of radii it has."""
    is_lesion: bool
    """Whether it is the lesion."""


@dataclass(frozen=True)
class Layout:
    """Positions of all objects on one slide."""

    side_px: int
    """Side of the slide."""
    pieces: tuple[Blob, ...]
    """Pieces of tissue."""
    candidates: tuple[Candidate, ...]
    """Lesion and decoys."""

    def tissue_depth(self, x: Floats, y: Floats) -> Floats:
        """Return how far points are inside the tissue; negative on glass."""
        return np.max([piece.depth(x, y) for piece in self.pieces], axis=0)


def draw_layout(
    rng: np.random.Generator, side_px: int, stratum: str, num_decoys: int, strata: dict[str, float]
) -> Layout:
    """Draw the layout of a slide.

    Args:
        rng: random generator.
        side_px: side of the slide.
        stratum: negative, or the stratum of the lesion.
        num_decoys: number of decoys of a negative slide. A positive one has one less, so that the number of dark blobs
            does not reveal the label.
        strata: weights of the strata from which the decoys' sizes are drawn, the same as for the cohort's lesions.

    Returns:
        A layout of one to four pieces of tissue that contain all candidates without overlap.
    """
    pieces = draw_pieces(rng, side_px)
    has_lesion = stratum != "negative"
    weights = np.array(list(strata.values())) / sum(strata.values())
    sizes = [str(s) for s in rng.choice(list(strata), size=max(num_decoys - has_lesion, 0), p=weights)]
    candidates = [(size, False) for size in sizes] + ([(stratum, True)] if has_lesion else [])
    layout = Layout(side_px, pieces, ())
    # Candidates are placed in random order: later ones find less room, which would reveal a lesion by its place.
    for k in rng.permutation(len(candidates)):
        size, is_lesion = candidates[k]
        candidate = Candidate(_place_candidate(rng, layout, size), size, is_lesion)
        layout = replace(layout, candidates=(*layout.candidates, candidate))
    return layout


def draw_pieces(rng: np.random.Generator, side_px: int) -> tuple[Blob, ...]:
    """Draw one to four pieces that are separate from each other and from the slide's border."""
    num = int(rng.integers(1, _MAX_PIECES + 1))
    areas = rng.uniform(0.6, 1.4, num)
    areas *= rng.uniform(*_TISSUE_SHARES) * side_px**2 / areas.sum()
    radii = np.sqrt(np.sort(areas)[::-1] / np.pi)
    gap = _GAP_SHARE * side_px
    shrink = 1.0
    # Sixty positions are tried for each piece. If one piece finds none, all become smaller and are placed again.
    while True:
        pieces: list[Blob] = []
        for radius in radii * shrink:
            blob = Blob(0.0, 0.0, radius, draw_waves(rng, elongation=rng.uniform(0.05, 0.22), roughness=0.10))
            low, high = blob.reach + gap, side_px - blob.reach - gap
            for x, y in rng.uniform(low, max(low, high), (60, 2)):
                if all(np.hypot(x - p.x, y - p.y) > blob.reach + p.reach + gap for p in pieces):
                    pieces.append(replace(blob, x=x, y=y))
                    break
        if len(pieces) == num:
            return tuple(pieces)
        shrink *= 0.98


def draw_waves(rng: np.random.Generator, elongation: float, roughness: float) -> NDArray[np.complex128]:
    """Draw the waves of a blob.

    Args:
        rng: random generator.
        elongation: amplitude of the wave with 2 periods; the logarithm of the ratio of the axes is twice as much.
        roughness: amplitude of the others.
    """
    periods = np.arange(2, 14)
    waves = (rng.normal(size=12) + 1j * rng.normal(size=12)) * roughness / periods**1.2
    waves[0] = elongation * np.exp(2j * np.pi * rng.random())
    return waves


def _place_candidate(rng: np.random.Generator, layout: Layout, size: str) -> Blob:
    """Place a candidate inside the tissue, away from the others; it becomes smaller only if there is no room for it."""
    shares, gap = RADIUS_SHARES[size], _GAP_SHARE * layout.side_px / 2
    radius = max(rng.uniform(*shares) * layout.side_px, RADIUS_FLOORS_PX[size])
    waves = draw_waves(rng, elongation=rng.uniform(0.05, 0.15), roughness=0.10)
    bounds = np.array([(p.x - p.reach, p.y - p.reach, p.x + p.reach, p.y + p.reach) for p in layout.pieces])
    low, high = bounds[:, :2].min(0), bounds[:, 2:].max(0)
    while True:
        blob = Blob(0.0, 0.0, radius, waves)
        x, y = rng.uniform(low, high, (2000, 2)).T
        room = layout.tissue_depth(x, y)
        for other in layout.candidates:
            room = np.minimum(room, np.hypot(x - other.blob.x, y - other.blob.y) - other.blob.reach)
        fits = np.flatnonzero(room > blob.reach + gap)
        if len(fits):
            return replace(blob, x=float(x[fits[0]]), y=float(y[fits[0]]))
        radius *= 0.95
