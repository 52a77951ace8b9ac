"""What happens to a view before a network sees it: size, the grey filter, the tissue mask.

Shapes: ``N`` views, ``C`` = 3 channels (RGB in [0, 1]), ``H W`` pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

GREY_TOLERANCE = 15
"""Largest difference between two channels, of 255, at which a pixel still counts as grey."""

CLEAR_DENSITY = 0.05
"""Mean optical density of empty glass, at most: 89 % of the light comes through."""

_ROUNDING = 1e-5  # float32 channels of n / 255 are off by 6e-8; a step of 1 / 255 is 4e-3


def area_pool(view_NCHW: Tensor, out_px: int) -> Tensor:
    """Views reduced to `out_px` by averaging whole blocks of pixels: I' (112) to I (56); (N, C, out_px, out_px).

    At half the size this is bilinear interpolation.
    """
    height, width = view_NCHW.shape[-2:]
    if height != width or height % out_px:
        raise ValueError(f"view of {height} x {width} px: must be a square whose side is a multiple of {out_px}")
    return F.avg_pool2d(view_NCHW, height // out_px)


def grey_filter(view_NCHW: Tensor, tolerance: int = GREY_TOLERANCE) -> Tensor:
    """Views with grey pixels turned black; the gradient flows through the others.

    Args:
        view_NCHW: RGB in [0, 1].
        tolerance: a pixel is grey where all differences between two channels are at most this, of 255.

    Source: the paper, section 4.2.
    """
    return view_NCHW * (_chroma(view_NCHW) > tolerance / 255 + _ROUNDING)[:, None]


def tissue_mask(
    view_NCHW: Tensor,
    *,
    tolerance: int = GREY_TOLERANCE,
    clear_density: float = CLEAR_DENSITY,
) -> Tensor:
    """Where a view shows stained tissue: coloured, which black and white are not, and darker than empty glass.

    The density (-log10 of the mean channel) is what tells pale tissue from yellowish glass, both of which have colour.

    Args:
        view_NCHW: RGB in [0, 1], grey-filtered or not.
        tolerance: as for `grey_filter`.
        clear_density: optical density of empty glass, at most.

    Returns:
        Boolean, shape (N, H, W).
    """
    coloured = _chroma(view_NCHW) > tolerance / 255 + _ROUNDING
    dense = view_NCHW.mean(dim=1) < 10**-clear_density
    return coloured & dense


def _chroma(view_NCHW: Tensor) -> Tensor:
    """Largest difference between two channels: all three are within a tolerance just where this one is."""
    return view_NCHW.amax(dim=1) - view_NCHW.amin(dim=1)
