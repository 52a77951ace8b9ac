"""One slide: its pyramid written to a file, and the outlines of what was planted in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.synthetic.layers import outline
from service.synthetic.layout import draw_layout
from service.synthetic.painting import Painting, paint
from service.synthetic.textures import Stain
from service.synthetic.tiff import TILE_PX, PyramidWriter

MPP = 0.25
"""Micrometres per level-0 pixel."""

_JPEG_QUALITY = 55
_LAST_LEVEL_PX = 1024
"""The pyramid ends with the first level that is no larger."""

_LAYOUT, _PAINTING = 0, 1
"""Streams of random numbers of a slide."""


@dataclass(frozen=True)
class SlideSpec:
    """What a slide is to be, apart from chance."""

    slide_id: str
    stratum: str
    center: int
    side_px: int
    num_decoys: int
    hint: float
    strata: tuple[tuple[str, float], ...]
    """Weights of the strata of the cohort's lesions."""
    seed: tuple[int, int]
    """The cohort's seed and the slide's number."""


@dataclass(frozen=True)
class Outline:
    """Where a lesion or a decoy lies."""

    slide_id: str
    size: str
    is_lesion: bool
    points: list[tuple[float, float]]
    """Closed ring of (x, y) in level-0 pixels."""


def write_slide(spec: SlideSpec, path: Path) -> list[Outline]:
    """Write one slide as a pyramidal tiled TIFF.

    Args:
        spec: what it is to be. Equal specs give equal bytes.
        path: the file to write.

    Returns:
        The outlines of its lesion and its decoys.
    """
    layout = draw_layout(
        np.random.default_rng([*spec.seed, _LAYOUT]), spec.side_px, spec.stratum, spec.num_decoys, dict(spec.strata)
    )
    rng = np.random.default_rng([*spec.seed, _PAINTING])
    painting, layers = paint(rng, layout, Stain.draw(rng, spec.center), spec.hint)
    _write_pyramid(path, painting, spec)
    return [
        Outline(spec.slide_id, candidate.size, candidate.is_lesion, outline(layer, candidate.blob))
        for candidate, layer in zip(layout.candidates, layers, strict=True)
    ]


def _write_pyramid(path: Path, painting: Painting, spec: SlideSpec) -> None:
    """All levels; a tile of a level is made of its four children, and equal children make equal tiles."""
    size, mpp, level = spec.side_px, MPP, 0
    index, tiles = painting.index, map(painting.render, range(len(painting.examples)))
    with open(path, "wb") as file:
        writer = PyramidWriter(file, num_tiles=index.size * 4 // 3 + 8)
        while True:
            entries, halves = [], []
            for rgb in tiles:
                jpeg = imagecodecs.jpeg8_encode(rgb, level=_JPEG_QUALITY, subsampling="420")
                entries.append(writer.add_tile(bytes(jpeg)))
                halves.append(_halved(rgb))
            places = np.array(entries)[index.ravel()]
            writer.add_level((size, size), places, mpp, f"generated slide {spec.slide_id}", reduced=level > 0)
            if size <= _LAST_LEVEL_PX:
                return
            size, mpp, level = -(-size // 2), mpp * 2, level + 1
            index, quads = _parents(index)
            tiles = map(partial(_joined, halves), quads)


def _parents(index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The next level's tiles: the number of each, and the four children, (2, 2) as they lie, of each number."""
    padded = np.pad(index, [(0, n % 2) for n in index.shape], mode="edge")
    children = np.stack([padded[0::2, 0::2], padded[0::2, 1::2], padded[1::2, 0::2], padded[1::2, 1::2]], -1)
    base = int(index.max()) + 1
    left, right = children[..., 0] * base + children[..., 1], children[..., 2] * base + children[..., 3]
    rows, places = np.unique(np.stack([left, right]), return_inverse=True)
    left, right = places.reshape(2, *left.shape)
    keys, parents = np.unique(left * len(rows) + right, return_inverse=True)
    pairs = np.stack([rows[keys // len(rows)], rows[keys % len(rows)]], -1)
    return parents.reshape(children.shape[:2]), np.stack([pairs // base, pairs % base], -1)


def _joined(halves: list[NDArray[np.uint8]], quad: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A tile from its four children at half size."""
    half = TILE_PX // 2
    rgb = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
    for i in range(2):
        for j in range(2):
            rgb[i * half : (i + 1) * half, j * half : (j + 1) * half] = halves[quad[i, j]]
    return rgb


def _halved(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of 2 x 2 pixels, rounded."""
    return np.asarray(Image.fromarray(rgb).reduce(2))
