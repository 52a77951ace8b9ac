"""From a layout to tiles: which tiles of level 0 look alike, and what each of them shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.synthetic.layers import EDGE, INSIDE, OUTSIDE, Layer, draw_roughness, make_layer
from service.synthetic.layout import Blob, Floats, Layout
from service.synthetic.textures import NUM_VARIANTS, Stain, draw_textures
from service.synthetic.tiff import TILE_PX

Numbers = NDArray[np.int64]

_CELLS_ALONG_SIDE = 128
"""Steps of the lattice on which tissue is outlined, about; the same for slides of any size."""
_CELLS_ALONG_RADIUS = 5
"""Steps of the lattice on which a candidate is outlined, about."""
_SMALLEST_CELL_PX, _LARGEST_CELL_PX = 32, 512
_CAPSULE_SHARE = 0.007
"""Width of the stroma around a piece of tissue as a share of the slide's side."""
_NUM_WAVES, _WAVELENGTH_SHARES, _TRABECULAE_DEPTH = 8, (0.05, 0.12), 2.7
"""Trabeculae run where a sum of waves (lengths as shares of the side) falls this far below 0."""
_PATTERN = 8
"""Tiles after which the choice of variants repeats, along each side: a tile of level 3."""


@dataclass(frozen=True)
class Painting:
    """A slide as its different level-0 tiles and where each of them stands."""

    layers: tuple[Layer, ...]
    index: Numbers
    """(tiles, tiles) number of the tile that stands there."""
    examples: Numbers
    """(K, 3) row, column and texture variant of one place of each different tile."""
    textures: dict[str, NDArray[np.uint8]]
    roughness: NDArray[np.float32]
    """See `Layer.cover`."""

    def render(self, number: int) -> NDArray[np.uint8]:
        """RGB of a tile, (256, 256, 3)."""
        row, column, variant = (int(v) for v in self.examples[number])
        shape = TILE_PX, 3 * TILE_PX  # long rows: numpy is slow where the innermost axis has three elements
        rgb: NDArray[np.uint8] | NDArray[np.float32] = self.textures["glass"][0].reshape(shape)
        for layer in self.layers:
            state = layer.state[row, column]
            if state == OUTSIDE:
                continue
            fill = self.textures[layer.texture][variant % NUM_VARIANTS[layer.texture]].reshape(shape)
            if state == INSIDE:
                rgb = fill
            else:
                step = np.subtract(fill, rgb, dtype=np.float32)
                step *= layer.cover(row, column, self.roughness)
                rgb = np.add(step, rgb, out=step)
        return np.rint(rgb, dtype=np.float32).astype(np.uint8).reshape(TILE_PX, TILE_PX, 3)


def paint(rng: np.random.Generator, layout: Layout, stain: Stain, hint: float) -> tuple[Painting, tuple[Layer, ...]]:
    """Decide what every tile of a slide shows.

    Returns:
        The painting, and the layer of each of the layout's candidates.
    """
    tissue = _draw_tissue_layers(rng, layout)
    candidates = tuple(_blob_layer(layout, c.blob, "lesion" if c.is_lesion else "decoy") for c in layout.candidates)
    layers = (*tissue, *candidates)
    index, examples = _different_tiles(rng, layers)
    return Painting(layers, index, examples, draw_textures(rng, stain, hint), draw_roughness(rng)), candidates


def _draw_tissue_layers(rng: np.random.Generator, layout: Layout) -> tuple[Layer, Layer]:
    """Stroma wherever there is tissue, and lymphoid tissue within: inside the capsule and between the trabeculae."""
    side = layout.side_px
    angle, phase = rng.uniform(0, 2 * np.pi, (2, _NUM_WAVES))
    wavenumber = 2 * np.pi / (side * rng.uniform(*_WAVELENGTH_SHARES, _NUM_WAVES))
    slope = np.sqrt(_NUM_WAVES / 2) * wavenumber.mean()  # about that of the sum, to turn its height into a distance

    def lymph_depth(x: Floats, y: Floats) -> Floats:
        waves = [
            np.sin((x * np.cos(a) + y * np.sin(a)) * k + p) for a, p, k in zip(angle, phase, wavenumber, strict=True)
        ]
        beside_trabeculae = (np.sum(waves, axis=0) + _TRABECULAE_DEPTH) / slope
        return np.minimum(layout.tissue_depth(x, y) - _CAPSULE_SHARE * side, beside_trabeculae)

    cell = _cell_px(side / _CELLS_ALONG_SIDE)
    return make_layer("stroma", layout.tissue_depth, side, cell), make_layer("lymph", lymph_depth, side, cell)


def _blob_layer(layout: Layout, blob: Blob, texture: str) -> Layer:
    """A candidate's layer; its lattice is fine enough for the blob, and no finer."""

    def depth(x: Floats, y: Floats) -> Floats:
        return np.minimum(blob.depth(x, y), layout.tissue_depth(x, y) - _CAPSULE_SHARE * layout.side_px)

    return make_layer(texture, depth, layout.side_px, _cell_px(blob.radius / _CELLS_ALONG_RADIUS), blob)


def _cell_px(wanted_px: float) -> int:
    """The power of 2 nearest to what is wanted, within bounds."""
    return int(np.clip(2 ** np.round(np.log2(wanted_px)), _SMALLEST_CELL_PX, _LARGEST_CELL_PX))


def _different_tiles(rng: np.random.Generator, layers: tuple[Layer, ...]) -> tuple[Numbers, Numbers]:
    """`Painting.index` and `Painting.examples`."""
    shape = layers[0].state.shape
    code, edge = np.zeros(shape, np.int64), np.zeros(shape, bool)
    num_variants = np.full(shape, NUM_VARIANTS["glass"])
    for layer in layers:
        inside = layer.state == INSIDE
        code[inside], edge[inside], num_variants[inside] = 0, False, NUM_VARIANTS[layer.texture]
        edge |= layer.state == EDGE
        pairs = code * (layer.code.max() + 1) + layer.code
        code = np.unique(pairs, return_inverse=True)[1].reshape(shape)
    rows, columns = np.indices(shape)
    variant = rng.integers(0, 2**16, (_PATTERN, _PATTERN))[rows % _PATTERN, columns % _PATTERN] % num_variants
    variant[_near(edge)] = 0  # one variant along edges, or few of their parents would be equal
    keys = code * max(NUM_VARIANTS.values()) + variant
    _, first, index = np.unique(keys, return_index=True, return_inverse=True)
    examples = np.stack([first // shape[1], first % shape[1], variant.ravel()[first]], -1)
    return index.reshape(shape), examples


def _near(edge: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tiles that share a 4 x 4 block (a tile of level 2) with a marked one."""
    rows, columns = edge.shape
    padded = np.pad(edge, ((0, -rows % 4), (0, -columns % 4)))
    blocks = padded.reshape(padded.shape[0] // 4, 4, -1, 4).any((1, 3))
    return blocks.repeat(4, 0).repeat(4, 1)[:rows, :columns]
