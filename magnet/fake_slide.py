"""Slides without files: their colour is a formula. For tests, benchmarks and trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from magnet.regions import Floats
from magnet.windows import Fetch, WindowRequest, Windows, window_side_px

Colour = Callable[[Floats, Floats], Floats]
"""RGB in [0, 1], shape (..., 3), at places (x, y) of the root square, each of shape (...)."""


def formula_fetch(colours: Sequence[Colour], side_px: Sequence[float]) -> Fetch:
    """A `Fetch` that paints the windows that are asked for, as from pyramids whose levels halve.

    Args:
        colours: of each slide of the batch; taken beyond the root square too.
        side_px: sides of their root squares in level-0 pixels.
    """

    def fetch(ask: WindowRequest) -> Windows:
        side = window_side_px(ask.out_px, ask.margin_px)
        native = 2 / np.asarray(side_px, np.float64)[ask.slide]
        finest = 2 * ask.region[:, 0] / ask.out_px  # one window pixel per output pixel
        level = 2.0 ** np.floor(np.log2(np.maximum(finest / native, 1)))
        pixel = native * level
        corner_xy = ask.region[:, 1:] - ask.region[:, :1]
        left_top = (np.floor(corner_xy / pixel[:, None]) - ask.margin_px) * pixel[:, None]
        pixels = np.zeros((len(ask.region), side, side, 3), np.uint8)
        for n, b in enumerate(ask.slide):
            x_K, y_K = (left_top[n, axis] + (np.arange(side) + 0.5) * pixel[n] for axis in (0, 1))
            pixels[n] = to_uint8(colours[b](*np.meshgrid(x_K, y_K)))
        place = np.concatenate([left_top, pixel[:, None], pixel[:, None]], axis=1)
        return Windows(pixels=pixels, place=place, level=level)

    return fetch


def waves(cycles: Sequence[tuple[float, float]], phases: Sequence[float] = (0.0, 2.0, 4.0)) -> Colour:
    """A smooth colour: each channel a plane wave between 0.1 and 0.9.

    Args:
        cycles: of each channel, along x and y, per unit of root coordinates (half of the slide's side).
        phases: of each channel in radians.
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
    """Colours in [0, 1] as pixels."""
    return np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
