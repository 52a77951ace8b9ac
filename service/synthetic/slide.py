"""Write one slide as a pyramid, and return the outlines of its candidates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.synthetic.clinical import (
    ClinicalSettings,
    Scanner,
    draw_artefacts,
    draw_clinical_layout,
    draw_clinical_textures,
)
from service.synthetic.layers import trace_outline
from service.synthetic.layout import MPP, draw_layout
from service.synthetic.painting import Painting, paint
from service.synthetic.textures import Stain, draw_textures
from service.synthetic.tiff import TILE_PX, PyramidWriter

_JPEG_QUALITY = 55
"""Quality of the tiles, 1 to 100."""
_LAST_LEVEL_PX = 1024
"""The pyramid ends with the first level whose side is at most this."""

_LAYOUT, _PAINTING = 0, 1
"""Numbers of a slide's two random streams."""


@dataclass(frozen=True)
class SlideSpec:
    """All properties that determine a slide."""

    slide_id: str
    """Name of the slide."""
    stratum: str
    """"negative", or the stratum of the lesion."""
    center: int
    """Number of the laboratory, which determines the stain."""
    side_px: int
    """Side of level 0 in pixels."""
    num_decoys: int
    """Number of decoys of a negative slide; a positive one has one less."""
    hint: float
    """Colour difference of lesions at low power, 0 to 1."""
    strata: tuple[tuple[str, float], ...]
    """Weights of the strata from which sizes of decoys are drawn."""
    seed: tuple[int, int]
    """Seed of the cohort and number of the slide."""
    clinical: ClinicalSettings | None = None
    """Settings of the clinical world, which does not use `num_decoys` and `hint`; None: the plain world."""


@dataclass(frozen=True)
class Outline:
    """Outline of a lesion or a decoy."""

    slide_id: str
    """Name of the slide."""
    size: str
    """Stratum whose range of radii it has."""
    is_lesion: bool
    """Whether it is the lesion."""
    points: list[tuple[float, float]]
    """Closed ring of (x, y) in level-0 pixels."""


def write_slide(spec: SlideSpec, path: Path) -> list[Outline]:
    """Write one slide as a pyramidal tiled TIFF.

    Args:
        spec: properties of the slide; equal specs give equal bytes.
        path: file to write.

    Returns:
        Outlines of the lesion and the decoys.
    """
    layout_rng = np.random.default_rng([*spec.seed, _LAYOUT])
    rng = np.random.default_rng([*spec.seed, _PAINTING])
    stain, strata = Stain.draw(rng, spec.center), dict(spec.strata)
    if spec.clinical is None:
        layout = draw_layout(layout_rng, spec.side_px, spec.stratum, spec.num_decoys, strata)
        painting, layers = paint(rng, layout, lambda rng: draw_textures(rng, stain, spec.hint))
    else:
        layout = draw_clinical_layout(layout_rng, spec.side_px, spec.stratum, spec.clinical.mean_candidates, strata)
        draw_all = partial(
            draw_clinical_textures,
            stain=stain,
            scanner=Scanner.draw(rng, spec.center),
            contrast=spec.clinical.contrast,
        )
        painting, layers = paint(rng, layout, draw_all, draw_artefacts(layout_rng, layout))
    _write_pyramid(path, painting, spec)
    return [
        Outline(spec.slide_id, candidate.size, candidate.is_lesion, trace_outline(layer, candidate.blob))
        for candidate, layer in zip(layout.candidates, layers, strict=True)
    ]


def _write_pyramid(path: Path, painting: Painting, spec: SlideSpec) -> None:
    """Write all levels. A tile is made of its four children on the finer level; equal children make equal tiles."""
    size, mpp, level = spec.side_px, MPP, 0
    index, tiles = painting.index, map(painting.render, range(len(painting.examples)))
    with open(path, "wb") as file:
        writer = PyramidWriter(file, num_tiles=index.size * 4 // 3 + 8)
        while True:
            entries, halves = [], []
            for rgb in tiles:
                jpeg = imagecodecs.jpeg8_encode(rgb, level=_JPEG_QUALITY, subsampling="420")
                entries.append(writer.add_tile(bytes(jpeg)))
                halves.append(_halve(rgb))
            places = np.array(entries)[index.ravel()]
            writer.add_level((size, size), places, mpp, f"generated slide {spec.slide_id}", reduced=level > 0)
            if size <= _LAST_LEVEL_PX:
                return
            size, mpp, level = -(-size // 2), mpp * 2, level + 1
            index, quads = _find_parents(index)
            tiles = map(partial(_join, halves), quads)


def _find_parents(index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tiles of the next level: the number at each position, and the four children (2, 2) of each number."""
    # An odd number of tiles is padded with the last one. The padding is outside the level, so that no reader shows it.
    padded = np.pad(index, [(0, n % 2) for n in index.shape], mode="edge")
    children = np.stack([padded[0::2, 0::2], padded[0::2, 1::2], padded[1::2, 0::2], padded[1::2, 1::2]], -1)
    # Four numbers are combined pairwise: all four in one integer could exceed 64 bits.
    base = int(index.max()) + 1
    left, right = children[..., 0] * base + children[..., 1], children[..., 2] * base + children[..., 3]
    rows, places = np.unique(np.stack([left, right]), return_inverse=True)
    left, right = places.reshape(2, *left.shape)
    keys, parents = np.unique(left * len(rows) + right, return_inverse=True)
    pairs = np.stack([rows[keys // len(rows)], rows[keys % len(rows)]], -1)
    return parents.reshape(children.shape[:2]), np.stack([pairs // base, pairs % base], -1)


def _join(halves: list[NDArray[np.uint8]], quad: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Make a tile from its four children at half size."""
    half = TILE_PX // 2
    rgb = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
    for i in range(2):
        for j in range(2):
            rgb[i * half : (i + 1) * half, j * half : (j + 1) * half] = halves[quad[i, j]]
    return rgb


def _halve(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the rounded means of 2 x 2 pixels."""
    return np.asarray(Image.fromarray(rgb).reduce(2))
