"""Views before a network sees them: size, grey filter, tissue mask.

Shape letters: N views, C = 3 channels (RGB in [0, 1]), H W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

GREY_TOLERANCE = 15
"""Largest difference between two channels, of 255, at which a pixel still counts as grey."""

CLEAR_DENSITY = 0.05
"""Largest mean optical density of empty glass: 89 % of the light passes."""

_ROUNDING = 1e-5  # float32 channels of n / 255 are off by 6e-8; a step of 1 / 255 is 4e-3


def area_pool(view_NCHW: Tensor, out_px: int) -> Tensor:
    """Reduce views by averaging whole blocks of pixels, such as I' (112 px) to I (56 px).

    At half the size the result equals that of bilinear interpolation.

    Args:
        view_NCHW: square views.
        out_px: side of the result; divides the side of the views.

    Returns:
        (N, C, out_px, out_px).

    Raises:
        ValueError: the views are not square, or their side is not a multiple of `out_px`.
    """
    height, width = view_NCHW.shape[-2:]
    if height != width or height % out_px:
        raise ValueError(f"view of {height} x {width} px: must be a square whose side is a multiple of {out_px}")
    return F.avg_pool2d(view_NCHW, height // out_px)


def grey_filter(view_NCHW: Tensor, tolerance: int = GREY_TOLERANCE) -> Tensor:
    """Turn grey pixels black; the gradient reaches the other pixels.

    Args:
        view_NCHW: RGB in [0, 1].
        tolerance: a pixel is grey if all differences between two channels are at most this, of 255.

    Source: the paper, section 4.2.
    """
    return view_NCHW * (_chroma(view_NCHW) > tolerance / 255 + _ROUNDING)[:, None]


def tissue_mask(view_NCHW: Tensor) -> Tensor:
    """Find stained tissue: pixels that are coloured and darker than empty glass.

    Black padding and white glass have no colour. Yellowish glass has colour as pale tissue does, and only the optical
    density (-log10 of the mean channel) distinguishes the two.

    Args:
        view_NCHW: RGB in [0, 1], grey-filtered or not.

    Returns:
        Boolean, shape (N, H, W).
    """
    coloured_NHW = _chroma(view_NCHW) > GREY_TOLERANCE / 255 + _ROUNDING
    dense_NHW = view_NCHW.mean(dim=1) < 10**-CLEAR_DENSITY
    return coloured_NHW & dense_NHW


def _chroma(view_NCHW: Tensor) -> Tensor:
    """Return the largest difference between two channels, (N, H, W): at most a tolerance if all three are."""
    return view_NCHW.amax(dim=1) - view_NCHW.amin(dim=1)
