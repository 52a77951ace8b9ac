"""The tiles of a layout: which tiles of level 0 are equal, and what each of them shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.synthetic.layers import EDGE, INSIDE, OUTSIDE, Depth, Layer, draw_roughness, make_layer
from service.synthetic.layout import CAPSULE_SHARE, Blob, Floats, Layout
from service.synthetic.textures import NUM_VARIANTS
from service.synthetic.tiff import TILE_PX

Numbers = NDArray[np.int64]

_CELLS_ALONG_SIDE = 128
"""Approximate number of lattice steps for tissue along the slide's side, for slides of any size."""
_CELLS_ALONG_RADIUS = 5
"""Approximate number of lattice steps for a candidate along its radius."""
_SMALLEST_CELL_PX, _LARGEST_CELL_PX = 32, 512
"""Bounds of a lattice step."""
_NUM_WAVES, _WAVELENGTH_SHARES, _TRABECULAE_DEPTH = 8, (0.05, 0.12), 2.7
"""Trabeculae are where a sum of waves falls this far below 0; wavelengths are shares of the slide's side."""
_PATTERN = 8
"""Period of the choice of variants in tiles. It is a tile of level 3, so that few different parents occur below it."""


@dataclass(frozen=True)
class Painting:
    """A slide as its different level-0 tiles and their positions."""

    layers: tuple[Layer, ...]
    """Layers from the lowest to the topmost."""
    index: Numbers
    """Number of the tile at each position, (tiles, tiles)."""
    examples: Numbers
    """Row, column and texture variant of one occurrence of each different tile, (K, 3)."""
    textures: dict[str, NDArray[np.uint8]]
    """Variants of each texture."""
    roughness: NDArray[np.float32]
    """Roughness of outlines; see `Layer.cover`."""

    def render(self, number: int) -> NDArray[np.uint8]:
        """Return the RGB pixels of a tile, uint8 (256, 256, 3)."""
        row, column, variant = (int(v) for v in self.examples[number])
        shape = TILE_PX, 3 * TILE_PX  # numpy is slow if the innermost axis has three elements
        rgb: NDArray[np.uint8] | NDArray[np.float32] = self.textures["glass"][0].reshape(shape)
        for layer in self.layers:
            state = layer.state[row, column]
            if state == OUTSIDE:
                continue
            fill = self.textures[layer.texture][variant % NUM_VARIANTS[layer.texture]].reshape(shape)
            if state == INSIDE:  # hides all layers below
                rgb = fill
            else:
                step = np.subtract(fill, rgb, dtype=np.float32)
                step *= layer.cover(row, column, self.roughness)
                rgb = np.add(step, rgb, out=step)
        return np.rint(rgb, dtype=np.float32).astype(np.uint8).reshape(TILE_PX, TILE_PX, 3)


def paint(
    rng: np.random.Generator,
    layout: Layout,
    draw_textures: Callable[[np.random.Generator], dict[str, NDArray[np.uint8]]],
    artefacts: Sequence[tuple[str, Blob]] = (),
) -> tuple[Painting, tuple[Layer, ...]]:
    """Determine what each tile of a slide shows.

    Args:
        rng: random generator.
        layout: positions of all objects.
        draw_textures: draws the textures by name.
        artefacts: texture and outline of each artefact. Ink covers everything; the others are below the candidates.

    Returns:
        The painting, and the layer of each candidate of the layout.
    """
    tissue = _draw_tissue_layers(rng, layout)
    candidates = tuple(
        _make_candidate_layer(layout, c.blob, "lesion" if c.is_lesion else "decoy") for c in layout.candidates
    )
    below = [_make_candidate_layer(layout, blob, name) for name, blob in artefacts if name != "pen"]
    ink = [_make_blob_layer(layout, blob.depth, blob, name) for name, blob in artefacts if name == "pen"]
    layers = (*tissue, *below, *candidates, *ink)
    index, examples = _find_different_tiles(rng, layers)
    return Painting(layers, index, examples, draw_textures(rng), draw_roughness(rng)), candidates


def _draw_tissue_layers(rng: np.random.Generator, layout: Layout) -> tuple[Layer, Layer]:
    """Draw stroma in all tissue, and lymphoid tissue inside the capsule and between the trabeculae."""
    side = layout.side_px
    angle, phase = rng.uniform(0, 2 * np.pi, (2, _NUM_WAVES))
    wavenumber = 2 * np.pi / (side * rng.uniform(*_WAVELENGTH_SHARES, _NUM_WAVES))
    slope = (
        np.sqrt(_NUM_WAVES / 2) * wavenumber.mean()
    )  # about that of the sum of waves; converts its height to a distance

    def lymph_depth(x: Floats, y: Floats) -> Floats:
        waves = [
            np.sin((x * np.cos(a) + y * np.sin(a)) * k + p) for a, p, k in zip(angle, phase, wavenumber, strict=True)
        ]
        depth_to_trabeculae = (np.sum(waves, axis=0) + _TRABECULAE_DEPTH) / slope
        return np.minimum(layout.tissue_depth(x, y) - CAPSULE_SHARE * side, depth_to_trabeculae)

    cell = _choose_cell_px(side / _CELLS_ALONG_SIDE)
    return make_layer("stroma", layout.tissue_depth, side, cell), make_layer("lymph", lymph_depth, side, cell)


def _make_candidate_layer(layout: Layout, blob: Blob, texture: str) -> Layer:
    """Make the layer of a candidate, on a lattice that is fine enough for the blob."""

    def depth(x: Floats, y: Floats) -> Floats:
        # A candidate does not grow into the capsule.
        return np.minimum(blob.depth(x, y), layout.tissue_depth(x, y) - CAPSULE_SHARE * layout.side_px)

    return _make_blob_layer(layout, depth, blob, texture)


def _make_blob_layer(layout: Layout, depth: Depth, blob: Blob, texture: str) -> Layer:
    return make_layer(texture, depth, layout.side_px, _choose_cell_px(blob.radius / _CELLS_ALONG_RADIUS), blob)


def _choose_cell_px(target_px: float) -> int:
    """Return the power of 2 that is closest to a target, within bounds."""
    return int(np.clip(2 ** np.round(np.log2(target_px)), _SMALLEST_CELL_PX, _LARGEST_CELL_PX))


def _find_different_tiles(rng: np.random.Generator, layers: tuple[Layer, ...]) -> tuple[Numbers, Numbers]:
    """Return `Painting.index` and `Painting.examples`."""
    shape = layers[0].state.shape
    code, edge = np.zeros(shape, np.int64), np.zeros(shape, bool)
    num_variants = np.full(shape, NUM_VARIANTS["glass"])
    for layer in layers:
        inside = layer.state == INSIDE
        # A layer that fills a tile hides the lower layers, so that their differences do not count.
        code[inside], edge[inside], num_variants[inside] = 0, False, NUM_VARIANTS[layer.texture]
        edge |= layer.state == EDGE
        pairs = code * (layer.code.max() + 1) + layer.code
        code = np.unique(pairs, return_inverse=True)[1].reshape(shape)
    rows, columns = np.indices(shape)
    variant = rng.integers(0, 2**16, (_PATTERN, _PATTERN))[rows % _PATTERN, columns % _PATTERN] % num_variants
    variant[_mark_blocks(edge)] = 0  # with several variants along edges, few of their parents would be equal
    keys = code * max(NUM_VARIANTS.values()) + variant
    _, first, index = np.unique(keys, return_index=True, return_inverse=True)
    examples = np.stack([first // shape[1], first % shape[1], variant.ravel()[first]], -1)
    return index.reshape(shape), examples


def _mark_blocks(edge: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark all tiles of each 4 x 4 block (a tile of level 2) that contains a marked tile."""
    rows, columns = edge.shape
    padded = np.pad(edge, ((0, -rows % 4), (0, -columns % 4)))
    blocks = padded.reshape(padded.shape[0] // 4, 4, -1, 4).any((1, 3))
    return blocks.repeat(4, 0).repeat(4, 1)[:rows, :columns]
