"""Sampling a region from its window, with a gradient to the region.

Positions in a window run from -1 to 1 between its edges (``align_corners=False`` everywhere).

Shape letters: N regions, C channels, H W window pixels, K output pixels per side, 2 (x, y), 3 (s, tx, ty),
4 (left, top, pixel width, pixel height).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from magnet.affine import pixel_centres

Method = Literal["bilinear", "lms"]

MARGIN_PX: dict[str, int] = {"bilinear": 1, "lms": 6}
"""Window pixels that a method reads around a region: one neighbour for bilinear, four spreads of the noise for lms."""

NUM_SAMPLES = 8
"""Samples per output pixel of "lms", the centre included; at least 4, because three others determine a plane."""

NOISE_WINDOW_PX = 1.0
"""Spread in window pixels that is added to the noise of "lms", so that samples do not fall on one pixel."""

RIDGE = 1e-3
"""Relative ridge on the slopes: noisy samples are sometimes almost on a line, and the ridge limits the slope then."""


def sample(
    pixels_NCHW: Tensor,
    place_N4: Tensor,
    region_N3: Tensor,
    out_px: int,
    *,
    method: Method = "bilinear",
    generator: torch.Generator | None = None,
    noise_out_px: float = 0.5,
) -> Tensor:
    """Resample regions from windows of pixels; black outside the windows.

    Output pixel j of a region (s, tx, ty) has its centre at ``t + s * ((2 j + 1) / out_px - 1)``.

    "bilinear" is differentiable, but its gradient depends only on the two pixels next to each point. "lms" (linearized
    multi-sampling) has the same value; its gradient to the region is the slope of a plane fitted to the window around
    each point. Use "bilinear" in evaluation; without gradient, "lms" is the same as "bilinear".

    Args:
        pixels_NCHW: windows, floating point.
        place_N4: left, top, and width and height of one window pixel, in root coordinates; float64, because the
            difference of two close numbers is computed.
        region_N3: regions in root coordinates. float32 suffices up to sides of some 10^5 pixels.
        out_px: side of the result.
        method: see above.
        generator: source of the noise of "lms". A generator of another device (such as the CPU) provides a seed.
        noise_out_px: spread of the auxiliary samples of "lms" in output pixels.

    Returns:
        (N, C, out_px, out_px), float32 (float64 for float64 pixels), in the range of the pixels.

    Raises:
        ValueError: unknown method.

    Source: bilinear: the paper, section 3.1. lms: Jiang et al., ICCV 2019 (reference 22 of the paper), without the
    plane's intercept, which the authors' code adds to the value: it would make the value random.
    """
    if method not in MARGIN_PX:
        raise ValueError(f"method {method!r}: must be one of {sorted(MARGIN_PX)}")
    # float32 is enough for all but the places; no operation below is one that autocast would run in less
    source_NCHW = pixels_NCHW if pixels_NCHW.dtype == torch.float64 else pixels_NCHW.float()
    scale_N2, offset_N2 = to_window(place_N4, region_N3, source_NCHW.shape[-2:])
    grid_NKK2 = _grid(scale_N2.to(source_NCHW.dtype), offset_N2.to(source_NCHW.dtype), out_px)
    if method == "bilinear" or not (grid_NKK2.requires_grad and torch.is_grad_enabled()):
        return _bilinear(source_NCHW, grid_NKK2)
    spread_N2 = _noise_spread(scale_N2, source_NCHW.shape[-2:], out_px, noise_out_px)
    noise = _on_device(generator, source_NCHW.device)
    slope_x_NCKK, slope_y_NCKK = _fit(source_NCHW.detach(), grid_NKK2.detach(), spread_N2.to(source_NCHW.dtype), noise)
    # These differences are zero: they leave the value as it is and carry the gradient to the region.
    moved_x, moved_y = (grid_NKK2 - grid_NKK2.detach())[:, None].unbind(dim=-1)
    return _bilinear(source_NCHW, grid_NKK2.detach()) + slope_x_NCKK * moved_x + slope_y_NCKK * moved_y


def to_window(place_N4: Tensor, region_N3: Tensor, size_px: tuple[int, int] | torch.Size) -> tuple[Tensor, Tensor]:
    """Convert regions from root coordinates to the coordinates of their windows.

    Args:
        place_N4: places of the windows; see `sample`.
        region_N3: regions in root coordinates.
        size_px: size (H, W) of the windows.

    Returns:
        Half-sides and centres, (N, 2) each, float64.
    """
    place, region = place_N4.double(), region_N3.double()
    extent = place[:, 2:] * place.new_tensor([size_px[1], size_px[0]])
    return 2 * region[:, :1] / extent, 2 * (region[:, 1:] - place[:, :2]) / extent - 1


def _grid(scale_N2: Tensor, offset_N2: Tensor, out_px: int) -> Tensor:
    """Return the positions (N, K, K, 2) of the output pixels in window coordinates."""
    centres_K = pixel_centres(out_px, like=scale_N2)
    x_NK, y_NK = (scale_N2[:, i, None] * centres_K + offset_N2[:, i, None] for i in (0, 1))
    num = scale_N2.shape[0]
    x = x_NK[:, None, :].expand(num, out_px, out_px)
    y = y_NK[:, :, None].expand(num, out_px, out_px)
    return torch.stack([x, y], dim=-1)


def _bilinear(source_NCHW: Tensor, grid_NKK2: Tensor) -> Tensor:
    return F.grid_sample(source_NCHW, grid_NKK2, mode="bilinear", padding_mode="zeros", align_corners=False)


def _noise_spread(scale_N2: Tensor, size_px: torch.Size, out_px: int, noise_out_px: float) -> Tensor:
    """Return the standard deviation (N, 2) of the auxiliary samples in window coordinates, without gradient."""
    output_N2 = noise_out_px * 2 * scale_N2.detach() / out_px
    window_2 = NOISE_WINDOW_PX * 2 / scale_N2.new_tensor([size_px[1], size_px[0]])
    return torch.hypot(output_N2, window_2.expand_as(output_N2))


def _on_device(generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """Return the generator itself, or a generator of `device` that it seeds."""
    if generator is None or generator.device.type == device.type:
        return generator
    # Drawing millions of numbers on the CPU and copying them would be slow.
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(seed))


class _Sums:
    """Sums over samples of noise u and differences y for a least-squares plane; (N, 1, K, K), of y (N, C, K, K)."""

    def __init__(self, y_NCKK: Tensor) -> None:
        like_N1KK = y_NCKK[:, :1]
        self.x, self.y, self.xx, self.yy, self.xy = (torch.zeros_like(like_N1KK) for _ in range(5))
        self.value, self.value_x, self.value_y = (torch.zeros_like(y_NCKK) for _ in range(3))
        self.count = 0

    def add(self, unit_NKK2: Tensor, y_NCKK: Tensor) -> None:
        u_x, u_y = unit_NKK2[:, None].unbind(dim=-1)
        self.count += 1
        self.x += u_x
        self.y += u_y
        self.xx.addcmul_(u_x, u_x)
        self.yy.addcmul_(u_y, u_y)
        self.xy.addcmul_(u_x, u_y)
        self.value += y_NCKK
        self.value_x.addcmul_(y_NCKK, u_x)
        self.value_y.addcmul_(y_NCKK, u_y)

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Return the slopes along x and y: least squares by covariances, with a ridge; (N, C, K, K) each."""
        ridge = RIDGE * self.count
        xx = self.xx - self.x.square() / self.count + ridge
        yy = self.yy - self.y.square() / self.count + ridge
        xy = self.xy - self.x * self.y / self.count
        along_x = self.value_x - self.value * (self.x / self.count)
        along_y = self.value_y - self.value * (self.y / self.count)
        determinant = xx * yy - xy.square()
        return (yy * along_x - xy * along_y) / determinant, (xx * along_y - xy * along_x) / determinant


@torch.no_grad()
def _fit(
    source_NCHW: Tensor, grid_NKK2: Tensor, spread_N2: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Fit planes to noisy samples around each point; return their slopes along x and y, each (N, C, K, K)."""
    base_NCKK = _bilinear(source_NCHW, grid_NKK2)
    spread_N112 = spread_N2[:, None, None]
    sums = _Sums(base_NCKK)
    # One sample at a time, so that the fit needs the memory of one. The regression runs on noise of unit spread, which
    # keeps it well conditioned at any zoom.
    for _ in range(NUM_SAMPLES - 1):
        unit_NKK2 = torch.randn(grid_NKK2.shape, generator=generator, dtype=grid_NKK2.dtype, device=grid_NKK2.device)
        sums.add(unit_NKK2, _bilinear(source_NCHW, torch.addcmul(grid_NKK2, unit_NKK2, spread_N112)) - base_NCKK)
    slope_x_NCKK, slope_y_NCKK = sums.slopes()
    spread_x, spread_y = spread_N2[:, :, None, None, None].unbind(dim=1)  # (N, 1, 1, 1) each
    return slope_x_NCKK / spread_x, slope_y_NCKK / spread_y
