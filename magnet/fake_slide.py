"""Slides without files: their colour is a formula. For tests, benchmarks and trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from magnet.regions import Floats
from magnet.windows import Fetch, WindowRequest, Windows, window_side_px

Colour = Callable[[Floats, Floats], Floats]
"""Returns RGB in [0, 1], shape (..., 3), at positions (x, y) of the root square, each of shape (...)."""


def formula_fetch(colours: Sequence[Colour], side_px: Sequence[float]) -> Fetch:
    """Return a `Fetch` that paints the requested windows, as if from pyramids whose levels halve.

    Args:
        colours: colour of each slide of the batch; used beyond the root square too.
        side_px: sides of the slides' root squares in level-0 pixels.
    """

    def fetch(request: WindowRequest) -> Windows:
        side = window_side_px(request.out_px, request.margin_px)
        native = 2 / np.asarray(side_px, np.float64)[request.slide]
        finest = 2 * request.region[:, 0] / request.out_px  # one window pixel per output pixel
        level = 2.0 ** np.floor(np.log2(np.maximum(finest / native, 1)))
        pixel = native * level
        corner_xy = request.region[:, 1:] - request.region[:, :1]
        left_top = (np.floor(corner_xy / pixel[:, None]) - request.margin_px) * pixel[:, None]
        pixels = np.zeros((len(request.region), side, side, 3), np.uint8)
        for n, b in enumerate(request.slide):
            x_K, y_K = (left_top[n, axis] + (np.arange(side) + 0.5) * pixel[n] for axis in (0, 1))
            pixels[n] = to_uint8(colours[b](*np.meshgrid(x_K, y_K)))
        place = np.concatenate([left_top, pixel[:, None], pixel[:, None]], axis=1)
        return Windows(pixels=pixels, place=place, level=level)

    return fetch


def waves(cycles: Sequence[tuple[float, float]], phases: Sequence[float] = (0.0, 2.0, 4.0)) -> Colour:
    """Return a smooth colour: each channel is a plane wave between 0.1 and 0.9.

    Args:
        cycles: cycles of each channel along x and y per unit of root coordinates (half of the slide's side).
        phases: phase of each channel in radians.
    """

    def colour(x: Floats, y: Floats) -> Floats:
        return np.stack(
            [
                0.5 + 0.4 * np.sin(2 * np.pi * (along_x * x + along_y * y) + phase)
                for (along_x, along_y), phase in zip(cycles, phases, strict=True)
            ],
            axis=-1,
        )

    return colour


def to_uint8(rgb: Floats) -> NDArray[np.uint8]:
    """Return colours in [0, 1] as 8-bit pixels; values outside are clipped."""
    return np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
