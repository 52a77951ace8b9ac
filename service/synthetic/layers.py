"""Layers of a slide: areas filled with one texture each, and the part of them that a tile shows.

The outline of an area is given by depths at the nodes of a lattice, positive inside. Depths are rounded, so that few
different edge tiles occur. Between nodes the depth is interpolated, and noise with the period of a tile makes the
outline rough. Lengths are level-0 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from service.synthetic.layout import Blob
from service.synthetic.textures import draw_noise
from service.synthetic.tiff import TILE_PX

Floats = NDArray[np.float64]
Depth = Callable[[Floats, Floats], Floats]
"""Function that returns how far points (x, y) are inside an area; negative outside."""

OUTSIDE, INSIDE, EDGE = 0, 1, 2
"""States of a tile relative to an area."""

_ROUGHNESS_PX = 7.0
"""Standard deviation of the noise on an outline."""
_SOFT_PX = 5.0
"""Width of the transition from one texture to the next."""
_MAX_ROUGHNESS = 3.5
"""Standard deviations at which the noise is clipped, so that it cannot reach beyond `_MARGIN_PX`."""
_MARGIN_PX = _MAX_ROUGHNESS * _ROUGHNESS_PX + _SOFT_PX
"""Distance from the outline beyond which a tile shows nothing of it."""


@dataclass(frozen=True)
class Layer:
    """An area and its texture, with the tiles classified by the part of it that they show."""

    texture: str
    """Name of the texture."""
    nodes: NDArray[np.float32]
    """Depth at each node in px, (tiles * per_tile + 1) nodes along each side."""
    per_tile: int
    """Number of lattice steps along a tile."""
    state: NDArray[np.int8]
    """State of each tile, (tiles, tiles)."""
    code: NDArray[np.int64]
    """Code of each tile, (tiles, tiles), equal where tiles show the same part: 0 outside, 1 inside, more for edges."""

    def cover(self, row: int, column: int, roughness: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how much of each pixel of a tile the layer covers, 0 to 1, (256, 3 * 256): each pixel three times."""
        n = self.per_tile
        nodes = self.nodes[row * n : row * n + n + 1, column * n : column * n + n + 1] / np.float32(_SOFT_PX)
        weights = _interpolation(n)
        cover = weights @ nodes @ weights.T.repeat(3, axis=1) + roughness
        return np.clip(cover, 0, 1, out=cover)

    def depth_at(self, x: Floats, y: Floats) -> Floats:
        """Return the depth in px at level-0 pixels as drawn, without the roughness."""
        step, last = TILE_PX // self.per_tile, self.nodes.shape[0] - 2
        u, v = x / step, y / step
        j, i = np.clip(u.astype(int), 0, last), np.clip(v.astype(int), 0, last)
        u, v = u - j, v - i
        top = self.nodes[i, j] * (1 - u) + self.nodes[i, j + 1] * u
        bottom = self.nodes[i + 1, j] * (1 - u) + self.nodes[i + 1, j + 1] * u
        return top * (1 - v) + bottom * v


def make_layer(texture: str, depth: Depth, side_px: int, cell_px: int, around: Blob | None = None) -> Layer:
    """Make a layer from the depth of its area.

    Args:
        texture: name of the texture that fills the area.
        depth: depth of the area.
        side_px: side of the slide.
        cell_px: step of the lattice on which the depth is evaluated, a power of 2.
        around: blob that contains the area; the depth is evaluated only within its reach.
    """
    num_tiles = -(-side_px // TILE_PX)
    num_cells = -(-num_tiles * TILE_PX // cell_px)
    nodes = np.full((num_cells + 1, num_cells + 1), -np.inf)
    rows = columns = slice(0, num_cells + 1)
    if around is not None:
        rows, columns = (_find_span(c, around.reach, cell_px, num_cells) for c in (around.y, around.x))
    y, x = np.mgrid[rows, columns] * float(cell_px)
    nodes[rows, columns] = depth(x, y)
    # Depths far from the outline do not matter: clipped and rounded, they make equal tiles.
    limit = max(1.25 * cell_px, 1.3 * _MARGIN_PX)
    step = cell_px / 2
    nodes = np.clip((np.floor(nodes / step) + 0.5) * step, -limit, limit)
    if cell_px > TILE_PX:
        nodes = _refine(nodes)[: num_tiles + 1, : num_tiles + 1]
    per_tile = max(TILE_PX // cell_px, 1)
    return _classify_tiles(texture, nodes.astype(np.float32), per_tile)


def _find_span(centre: float, reach: float, cell_px: int, num_cells: int) -> slice:
    """Return the nodes within a reach of a centre, and a few more."""
    first, last = int((centre - reach) / cell_px) - 3, int((centre + reach) / cell_px) + 4
    return slice(max(first, 0), min(last, num_cells + 1))


def trace_outline(layer: Layer, blob: Blob, num_points: int = 120) -> list[tuple[float, float]]:
    """Return the closed outline of a blob as painted, (x, y) in level-0 pixels: the first zero of depth on each ray."""
    angle = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    radius = np.linspace(0, 1.5 * blob.reach + TILE_PX, 400)[:, None]
    depth = layer.depth_at(blob.x + radius * np.cos(angle), blob.y + radius * np.sin(angle))
    first = np.maximum((depth <= 0).argmax(0), 1)
    inner, outer = depth[first - 1, range(num_points)], depth[first, range(num_points)]
    # Linear interpolation between the last point inside and the first one outside.
    at = radius[first - 1, 0] + (radius[1, 0] - radius[0, 0]) * inner / (inner - outer)
    x, y = (blob.x + at * np.cos(angle)).round(1).tolist(), (blob.y + at * np.sin(angle)).round(1).tolist()
    return [*zip(x, y, strict=True), (x[0], y[0])]


def draw_roughness(rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw the roughness of outlines for `Layer.cover`, (256, 3 * 256), each pixel three times."""
    noise = np.clip(draw_noise(rng, 20, 90), -_MAX_ROUGHNESS, _MAX_ROUGHNESS)
    return (0.5 + noise * np.float32(_ROUGHNESS_PX / _SOFT_PX)).repeat(3, axis=1)


def _refine(nodes: Floats) -> Floats:
    """Return a lattice with twice as many steps; new nodes are interpolated."""
    # Each pass refines the first axis and transposes.
    for _ in range(2):
        fine = np.repeat(nodes, 2, axis=0)[:-1]
        fine[1::2] = (nodes[:-1] + nodes[1:]) / 2
        nodes = fine.T
    return nodes


def _classify_tiles(texture: str, nodes: NDArray[np.float32], per_tile: int) -> Layer:
    """Make a layer from its nodes: the state of each tile, and equal codes for edge tiles that look the same."""
    # Adjacent tiles share the nodes on their common border.
    windows = np.lib.stride_tricks.sliding_window_view(nodes, (per_tile + 1, per_tile + 1))[::per_tile, ::per_tile]
    low, high = windows.min((2, 3)), windows.max((2, 3))
    state = np.where(low > _MARGIN_PX, INSIDE, np.where(high < -_MARGIN_PX, OUTSIDE, EDGE)).astype(np.int8)
    code = state.astype(np.int64)
    edge = state == EDGE
    if edge.any():
        rows = windows[edge].reshape(int(edge.sum()), -1)
        code[edge] = EDGE + np.unique(rows, axis=0, return_inverse=True)[1].ravel()
    return Layer(texture, nodes, per_tile, state, code)


@lru_cache
def _interpolation(num_steps: int) -> NDArray[np.float32]:
    """Return the weights of the nodes along a tile at the centres of its pixels, (256, num_steps + 1)."""
    at = (np.arange(TILE_PX) + 0.5) / TILE_PX * num_steps
    return np.clip(1 - np.abs(at[:, None] - np.arange(num_steps + 1)), 0, 1).astype(np.float32)
