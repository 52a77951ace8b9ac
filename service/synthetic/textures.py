"""Textures of slides: glass, stroma, lymphoid tissue, decoys and lesions.

All variants of a texture fit each other on every side, because the nuclei that cross a tile's border are the same in
all variants. Lesions differ from decoys only in the size of their nuclei: mean and standard deviation of each colour
channel are equal over the texture, and every 64 px block has the texture's mean. Lesions and decoys are therefore equal
in each pyramid level from the sixth on, unless a hint adds a colour difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.synthetic.nuclei import draw_nuclei
from service.synthetic.tiff import TILE_PX

Floats = NDArray[np.float32]

BLOCK_PX = 64
"""Side of the blocks with equal mean colour: one pixel of level 6."""

NUM_VARIANTS = {"glass": 1, "stroma": 3, "lymph": 6, "decoy": 6, "lesion": 6, "fold": 6, "blur": 6, "pen": 1}
"""Number of variants of each texture."""

_DARKER = 25.0
"""Grey levels by which candidates are darker than the tissue around them."""

_LESION_TINT = np.array([-4.0, -14.0, 12.0], np.float32)
"""Difference that a hint of 1 adds to a lesion's mean RGB: bluer and slightly darker."""

_GLASS_RGB = np.array([243.0, 242.0, 244.0], np.float32)
_HEMATOXYLIN = np.array([0.62, 0.86, 0.30], np.float32)
_EOSIN = np.array([0.06, 0.40, 0.16], np.float32)
"""Optical densities of full stain in RGB."""


@dataclass(frozen=True)
class Stain:
    """Strength of the two dyes, 1 on average."""

    hematoxylin: float
    """Strength of the blue dye of nuclei."""
    eosin: float
    """Strength of the pink dye of other tissue."""

    @classmethod
    def draw(cls, rng: np.random.Generator, center: int) -> Stain:
        """Draw the stain of a slide: the mean of its center, equal in all cohorts, with random variation."""
        center_mean = np.random.default_rng([center, 7]).normal(1, 0.07, 2)
        h, e = center_mean * rng.normal(1, 0.03, 2)
        return cls(float(h), float(e))


def draw_textures(rng: np.random.Generator, stain: Stain, hint: float) -> dict[str, NDArray[np.uint8]]:
    """Draw the textures of one slide.

    Args:
        rng: random generator.
        stain: strength of the dyes.
        hint: colour difference of lesions at low power, 0 to 1.

    Returns:
        Variants of each texture by name, uint8 RGB (variants, 256, 256, 3).
    """
    tiles = {}
    for name in ("stroma", "lymph", "lesion"):
        nuclei = draw_nuclei(rng, name, NUM_VARIANTS[name])
        tiles[name] = equalise_blocks(tissue_rgb(rng, stain, name, nuclei))
    lymph_mean, lymph_std = _compute_moments(tiles["lymph"])
    lesion_mean, lesion_std = _compute_moments(tiles["lesion"])
    dark_mean = lymph_mean - _DARKER
    tiles["decoy"] = tiles["lymph"] - np.float32(_DARKER)
    tiles["lesion"] = (tiles["lesion"] - lesion_mean) * (lymph_std / lesion_std) + (dark_mean + hint * _LESION_TINT)
    tiles["glass"] = _GLASS_RGB + rng.normal(0, 1.2, (1, TILE_PX, TILE_PX, 1)).astype(np.float32)
    return {name: np.clip(tile + np.float32(0.5), 0, 255).astype(np.uint8) for name, tile in tiles.items()}


def draw_noise(rng: np.random.Generator, shortest_px: float, longest_px: float, stretch: float = 1.0) -> Floats:
    """Draw smooth noise with the period of a tile, mean 0 and standard deviation 1, (256, 256).

    Args:
        rng: random generator.
        shortest_px: shortest wavelength.
        longest_px: longest wavelength.
        stretch: ratio of wavelengths along x and y; above 1, the noise resembles fibres.
    """
    frequency = np.hypot(np.fft.fftfreq(TILE_PX)[:, None], stretch * np.fft.rfftfreq(TILE_PX)).astype(np.float32)
    gain = ((frequency >= 1 / longest_px) & (frequency <= 1 / shortest_px)) / np.maximum(frequency, 1e-3)
    white = np.fft.rfft2(rng.standard_normal((TILE_PX, TILE_PX), dtype=np.float32))
    noise = np.fft.irfft2(white * gain, (TILE_PX, TILE_PX)).astype(np.float32)
    return noise / noise.std()


def tissue_rgb(rng: np.random.Generator, stain: Stain, name: str, nuclei: Floats) -> Floats:
    """Return the variants of a texture as RGB, float32 (variants, 256, 256, 3): nuclei on a background of fibres.

    Args:
        rng: random generator.
        stain: strength of the dyes.
        name: name of the texture.
        nuclei: share of each pixel that a nucleus covers, see `draw_nuclei`.
    """
    if name == "stroma":
        fibres = draw_noise(rng, 6, 60, stretch=4.0)
        eosin, hematoxylin = 0.62 + 0.16 * fibres, 0.05 + 0.04 * fibres
    else:
        mottle = draw_noise(rng, 8, 30)
        eosin, hematoxylin = 0.42 + 0.07 * mottle, 0.20 + 0.04 * mottle
    hematoxylin = stain.hematoxylin * (hematoxylin + nuclei)
    eosin = stain.eosin * eosin * (1 - 0.5 * nuclei)
    # Beer-Lambert law: the amounts of the dyes attenuate white light exponentially.
    return np.stack(
        [
            white * np.exp(-h * hematoxylin - e * eosin)
            for white, h, e in zip(_GLASS_RGB, _HEMATOXYLIN, _EOSIN, strict=True)
        ],
        axis=-1,
    )


def equalise_blocks(tiles: Floats) -> Floats:
    """Return tiles in which every 64 px block has the texture's mean colour.

    The correction is linear between the centres of the blocks, so that the borders of blocks are not visible.
    """
    blocks = _compute_block_means(tiles)
    blocks -= blocks.mean((0, 1, 2))
    weights = _compute_block_weights()
    # Values at the centres must be chosen so that the means of the interpolated blocks equal the differences.
    inverse = np.linalg.inv(weights.reshape(TILE_PX // BLOCK_PX, BLOCK_PX, -1).mean(1))
    along = (weights @ inverse).astype(np.float32)
    rows = np.einsum("yi,nijc->nyjc", along, blocks, optimize=True)
    return tiles - np.matmul(along, rows)


def _compute_block_means(tiles: Floats) -> Floats:
    """Return the mean colour of each 64 px block, (variants, 4, 4, 3)."""
    num = TILE_PX // BLOCK_PX
    rows = tiles.reshape(-1, num, BLOCK_PX, TILE_PX * 3).mean(2)
    return rows.reshape(-1, num, num, BLOCK_PX, 3).mean(3)


def _compute_block_weights() -> Floats:
    """Return the weights of the four block centres at each pixel along a tile, (256, 4), linear and periodic."""
    num = TILE_PX // BLOCK_PX
    at = (np.arange(TILE_PX) + 0.5) / BLOCK_PX - 0.5
    distance = np.abs((at[:, None] - np.arange(num) + num / 2) % num - num / 2)
    return np.clip(1 - distance, 0, 1).astype(np.float32)


def _compute_moments(tiles: Floats) -> tuple[Floats, Floats]:
    """Return the mean and the standard deviation of each channel."""
    mean = _compute_block_means(tiles).mean((0, 1, 2))
    return mean, np.sqrt(_compute_block_means((tiles - mean) ** 2).mean((0, 1, 2)))
