"""Nuclei, and their arrangement in a tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.synthetic.tiff import TILE_PX

Floats = NDArray[np.float32]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
    """Properties of the nuclei of a texture."""

    number: int
    """Number of nuclei in a tile."""
    radius_px: float
    """Mean radius."""
    max_ratio: float
    """Largest ratio of the two axes."""
    any_direction: bool
    """Whether nuclei have any direction; otherwise they are about parallel to x."""


KINDS = {
    "stroma": Kind(number=10, radius_px=6.5, max_ratio=3.0, any_direction=False),
    "lymph": Kind(number=100, radius_px=8.5, max_ratio=1.3, any_direction=True),
    "lesion": Kind(number=25, radius_px=17.0, max_ratio=1.3, any_direction=True),
}
"""Nuclei of lesions have twice the diameter of lymphoid ones and a quarter of their number, so that they cover the same
area."""

_NUM_STAMPS = 16
"""Number of different nuclei of a texture."""
_SPREADING_STEPS = 12
"""Number of steps in which nuclei are moved apart."""


def draw_nuclei(rng: np.random.Generator, name: str, num_variants: int) -> Floats:
    """Draw the nuclei of the variants of a texture.

    Nuclei are moved apart from each other, so that their density is even at low power. Nuclei that cross the tile's
    border are the same in all variants, so that variants fit each other; the others are drawn again for each.

    Returns:
        Amount of nucleus in each pixel, 0 to about 1, float32 (num_variants, 256, 256).
    """
    kind = KINDS[name]
    stamps = [_draw_stamp(rng, kind) for _ in range(_NUM_STAMPS)]
    reach = max(stamp.shape[0] for stamp in stamps) // 2 + 1
    shared = _spread(rng.uniform(0, TILE_PX, (kind.number, 2)), np.ones(kind.number, bool)) % TILE_PX
    is_free = ((shared > reach) & (shared < TILE_PX - reach)).all(1)
    which = rng.integers(_NUM_STAMPS, size=(num_variants, kind.number))
    which[:, ~is_free] = which[0, ~is_free]
    tiles = []
    for stamp_numbers in which:
        moved = shared + is_free[:, None] * rng.normal(0, kind.radius_px, shared.shape)
        centres = np.where(is_free[:, None], np.clip(_spread(moved, is_free), reach, TILE_PX - reach), shared)
        tiles.append(_draw_stamps(centres, [stamps[k] for k in stamp_numbers]))
    return np.stack(tiles)


def _spread(points: Points, is_free: NDArray[np.bool_]) -> Points:
    """Move points apart on the periodic tile until their density is about even; only free points move."""
    distance_px = TILE_PX / np.sqrt(len(points))
    for _ in range(_SPREADING_STEPS):
        apart = points[:, None] - points[None]
        # The shortest way between two points may cross the tile's border.
        apart -= TILE_PX * np.round(apart / TILE_PX)
        distance = np.hypot(apart[..., 0], apart[..., 1]) + 1e-9
        push = np.clip(1 - distance / distance_px, 0, None) / distance
        points = points + 0.35 * distance_px * is_free[:, None] * (apart * push[..., None]).sum(1)
    return points


def _draw_stamps(centres: Points, stamps: list[Floats]) -> Floats:
    """Draw stamps at (x, y), wrapped around the tile's border; where they overlap, the darkest is visible."""
    pad = max(stamp.shape[0] for stamp in stamps)
    canvas = np.zeros((TILE_PX + 2 * pad, TILE_PX + 2 * pad), np.float32)
    for (x, y), stamp in zip((centres % TILE_PX).astype(int), stamps, strict=True):
        side = stamp.shape[0]
        part = canvas[y + pad - side // 2 :, x + pad - side // 2 :][:side, :side]
        np.maximum(part, stamp, out=part)
    for _ in range(2):  # fold parts beyond the border back, first along y, then (transposed) along x
        canvas[pad : 2 * pad] = np.maximum(canvas[pad : 2 * pad], canvas[-pad:])
        canvas[-2 * pad : -pad] = np.maximum(canvas[-2 * pad : -pad], canvas[:pad])
        canvas = canvas[pad:-pad].T
    return canvas


def _draw_stamp(rng: np.random.Generator, kind: Kind) -> Floats:
    """Draw one nucleus, 0 to about 1: an uneven ellipse with a dark rim and clumps of chromatin."""
    ratio = rng.uniform(1 + (kind.max_ratio - 1) / 3, kind.max_ratio)
    radius = kind.radius_px * rng.uniform(0.88, 1.12)
    half = int(np.ceil(radius * 1.08 * np.sqrt(ratio))) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    angle = rng.uniform(0, np.pi) if kind.any_direction else rng.uniform(-0.3, 0.3)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    dent = 1 + 0.06 * np.cos(3 * np.arctan2(v, u) + rng.uniform(0, 2 * np.pi))
    rho = np.hypot(u / np.sqrt(ratio), v * np.sqrt(ratio)) / (radius * dent)
    cover = np.clip((1 - rho) * radius / 1.5 + 0.5, 0, 1)
    phase = rng.uniform(0, 2 * np.pi, 4)
    chromatin = np.sin(5 * x / radius + phase[0]) * np.sin(5 * y / radius + phase[1])
    chromatin += np.sin(8 * u / radius + phase[2]) * np.sin(8 * v / radius + phase[3])
    shade = rng.uniform(0.58, 0.72) + 0.2 * np.clip(rho, 0, 1) ** 4 + 0.07 * chromatin
    return (cover * shade).astype(np.float32)
