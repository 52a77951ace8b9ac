"""Sampling a region from its window, with a gradient to the region.

Shapes: ``N`` regions, ``C`` channels, ``H W`` window pixels, ``K`` output pixels a side, ``S`` auxiliary samples.
Positions in a window run from -1 to 1 between its edges (``align_corners=False`` everywhere); the last dimension 2 is
(x, y).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from magnet.affine import pixel_centres

Method = Literal["bilinear", "lms"]

MARGIN_PX: dict[str, int] = {"bilinear": 1, "lms": 6}
"""Window pixels that a method reads around a region: the neighbour for bilinear, four spreads of the noise for lms."""

RIDGE = 1e-3
"""Relative ridge on the slopes. Seven noisy samples are now and then almost on a line; this caps what they can say."""


def sample(
    pixels_NCHW: Tensor,
    place_N4: Tensor,
    region_N3: Tensor,
    out_px: int,
    *,
    method: Method = "bilinear",
    generator: torch.Generator | None = None,
    num_samples: int = 8,
    noise_out_px: float = 0.5,
    noise_window_px: float = 1.0,
    intercept: bool = False,
) -> Tensor:
    """Resample regions from windows of pixels; black outside the windows.

    Output pixel j of a region (s, tx, ty) has its centre at ``t + s * ((2 j + 1) / out_px - 1)``.

    "bilinear" is differentiable as it stands, but its gradient sees only the two pixels beside each point.
    "lms" (linearized multi-sampling) has the same value; its gradient to the region is the slope of a plane fitted to
    the window around each point. Use "bilinear" in evaluation; without gradient, "lms" is "bilinear".

    Args:
        pixels_NCHW: windows, floating point.
        place_N4: left, top, and width and height of one window pixel, in root coordinates; float64, as the difference
            of two close numbers is taken.
        region_N3: regions in root coordinates. float32 suffices up to sides of some 10^5 pixels.
        out_px: side of the result.
        method: see above.
        generator: source of the noise of "lms".
        num_samples: samples per output pixel for "lms", the centre included; at least 4.
        noise_out_px: spread of the auxiliary samples in output pixels.
        noise_window_px: spread added to it, in window pixels, so that samples do not fall on one pixel.
        intercept: add the intercept of the fitted plane to the value of "lms", as its authors' code does. It makes the
            value random.

    Returns:
        (N, C, out_px, out_px), float32 (float64 for float64 pixels).

    Source: bilinear: the paper, section 3.1. lms: Jiang et al., ICCV 2019, arXiv 1901.07124, section 3.
    """
    if method not in MARGIN_PX:
        raise ValueError(f"method {method!r}: must be one of {sorted(MARGIN_PX)}")
    if num_samples < 4:
        raise ValueError(f"num_samples {num_samples}: must be 4 or more, three besides the centre determine a plane")
    with torch.autocast(pixels_NCHW.device.type, enabled=False):  # the slopes need float32
        source = pixels_NCHW if pixels_NCHW.dtype == torch.float64 else pixels_NCHW.float()
        scale_N2, offset_N2 = in_window(place_N4, region_N3, source.shape[-2:])
        grid_NKK2 = _grid(scale_N2.to(source.dtype), offset_N2.to(source.dtype), out_px)
        if method == "bilinear" or not (grid_NKK2.requires_grad and torch.is_grad_enabled()):
            return _bilinear(source, grid_NKK2)
        spread_N2 = _noise_spread(scale_N2, source.shape[-2:], out_px, noise_out_px, noise_window_px)
        slope_NC2KK, intercept_NCKK = _fit(
            source.detach(), grid_NKK2.detach(), spread_N2.to(source.dtype), num_samples - 1, generator
        )
        moved_N12KK = (grid_NKK2 - grid_NKK2.detach()).permute(0, 3, 1, 2).unsqueeze(1)
        value = _bilinear(source, grid_NKK2.detach()) + (slope_NC2KK * moved_N12KK).sum(dim=2)
        return value + intercept_NCKK if intercept else value


def in_window(place_N4: Tensor, region_N3: Tensor, size_px: tuple[int, int] | torch.Size) -> tuple[Tensor, Tensor]:
    """Half-sides and centres, each (N, 2), of regions in the coordinates of their windows of (H, W) pixels; float64."""
    place, region = place_N4.double(), region_N3.double()
    extent = place[:, 2:] * place.new_tensor([size_px[1], size_px[0]])
    return 2 * region[:, :1] / extent, 2 * (region[:, 1:] - place[:, :2]) / extent - 1


def _grid(scale_N2: Tensor, offset_N2: Tensor, out_px: int) -> Tensor:
    centres_K = pixel_centres(out_px, like=scale_N2)
    x_NK, y_NK = (scale_N2[:, i, None] * centres_K + offset_N2[:, i, None] for i in (0, 1))
    num = scale_N2.shape[0]
    x = x_NK[:, None, :].expand(num, out_px, out_px)
    y = y_NK[:, :, None].expand(num, out_px, out_px)
    return torch.stack([x, y], dim=-1)


def _bilinear(source_NCHW: Tensor, grid_NKK2: Tensor) -> Tensor:
    return F.grid_sample(source_NCHW, grid_NKK2, mode="bilinear", padding_mode="zeros", align_corners=False)


def _noise_spread(scale_N2: Tensor, size_px: torch.Size, out_px: int, noise_out_px: float, noise_px: float) -> Tensor:
    """Standard deviation of the auxiliary samples in window coordinates; (N, 2), without gradient."""
    output = noise_out_px * 2 * scale_N2.detach() / out_px
    window = noise_px * 2 / scale_N2.new_tensor([size_px[1], size_px[0]])
    return torch.hypot(output, window.expand_as(output))


@torch.no_grad()
def _fit(
    source_NCHW: Tensor, grid_NKK2: Tensor, spread_N2: Tensor, num_samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Slopes (N, C, 2, K, K) and intercepts (N, C, K, K) of planes fitted to noisy samples around each point.

    The regression runs on noise of unit spread, which keeps it well conditioned at any zoom, and one sample at a time,
    which keeps it as small in memory as one sample. Only sums are kept: S of 1, u, uu' and y, uy.
    """
    base_NCKK = _bilinear(source_NCHW, grid_NKK2)
    num, channels, side, _ = base_NCKK.shape
    sum_u = base_NCKK.new_zeros(num, 2, side, side)
    sum_uu = base_NCKK.new_zeros(num, 3, side, side)  # xx, yy, xy
    sum_y = torch.zeros_like(base_NCKK)
    sum_uy = base_NCKK.new_zeros(num, channels, 2, side, side)
    for _ in range(num_samples):
        unit_NKK2 = torch.randn(grid_NKK2.shape, generator=generator, dtype=base_NCKK.dtype, device=base_NCKK.device)
        y = _bilinear(source_NCHW, grid_NKK2 + unit_NKK2 * spread_N2[:, None, None]) - base_NCKK
        u = unit_NKK2.permute(0, 3, 1, 2)
        sum_u += u
        sum_uu += torch.stack([u[:, 0] ** 2, u[:, 1] ** 2, u[:, 0] * u[:, 1]], dim=1)
        sum_y += y
        sum_uy += y[:, :, None] * u[:, None]
    slope = _slopes(sum_u, sum_uu, sum_y, sum_uy, num_samples)
    intercept = (sum_y - (slope * sum_u[:, None]).sum(dim=2)) / num_samples
    return slope / spread_N2[:, None, :, None, None], intercept


def _slopes(sum_u: Tensor, sum_uu: Tensor, sum_y: Tensor, sum_uy: Tensor, num_samples: int) -> Tensor:
    """Least squares with intercept for two regressors, by their covariances; (N, C, 2, K, K)."""
    mean_u = sum_u / num_samples
    xx = sum_uu[:, 0] - mean_u[:, 0] * sum_u[:, 0] + RIDGE * num_samples
    yy = sum_uu[:, 1] - mean_u[:, 1] * sum_u[:, 1] + RIDGE * num_samples
    xy = sum_uu[:, 2] - mean_u[:, 0] * sum_u[:, 1]
    with_y = sum_uy - mean_u[:, None] * sum_y[:, :, None]
    along_x, along_y = with_y[:, :, 0], with_y[:, :, 1]
    determinant = (xx * yy - xy.square())[:, None]
    xx, yy, xy = xx[:, None], yy[:, None], xy[:, None]
    return torch.stack([yy * along_x - xy * along_y, xx * along_y - xy * along_x], dim=2) / determinant[:, :, None]
