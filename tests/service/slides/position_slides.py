"""Slides whose colour encodes the position, and window requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from magnet.windows import WindowRequest


def write_position_slide(path: Path, size: tuple[int, int], steps: list[int], tile: int = 64) -> Path:
    """Write a lossless pyramid: red encodes x and green y, each relative to the slide's size; blue is 200."""
    wide, high = size
    with tifffile.TiffWriter(path) as file:
        for n, step in enumerate(steps):
            w, h = -(-wide // step), -(-high // step)
            x, y = (np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h
            pixels = np.empty((h, w, 3), np.uint8)
            pixels[..., 0], pixels[..., 1], pixels[..., 2] = x[None] * 250, y[:, None] * 250, 200
            file.write(pixels, tile=(tile, tile), compression="zlib", subfiletype=int(n > 0), metadata=None)
    return path


def make_request(
    region: NDArray[np.float64], out_px: int = 56, margin_px: int = 3, slide: list[int] | None = None
) -> WindowRequest:
    slides = np.zeros(len(region), np.int64) if slide is None else np.array(slide, np.int64)
    return WindowRequest(1, slides, region, out_px, margin_px)


def draw_regions(num: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    s = np.exp(rng.uniform(np.log(0.01), np.log(1.2), num))
    return np.stack([s, rng.uniform(-1.3, 1.3, num), rng.uniform(-1.3, 1.3, num)], axis=1)
