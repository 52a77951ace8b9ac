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
        generator: source of the noise of "lms". One of another device (the CPU's, say) is asked for a seed instead.
        num_samples: samples per output pixel for "lms", the centre included; at least 4.
        noise_out_px: spread of the auxiliary samples in output pixels.
        noise_window_px: spread added to it, in window pixels, so that samples do not fall on one pixel.
        intercept: add the intercept of the fitted plane to the value of "lms", as its authors' code does. It makes the
            value random.

    Returns:
        (N, C, out_px, out_px), float32 (float64 for float64 pixels).

    Source: bilinear: the paper, section 3.1. lms: Jiang et al., ICCV 2019 (reference 22 of the paper).
    """
    if method not in MARGIN_PX:
        raise ValueError(f"method {method!r}: must be one of {sorted(MARGIN_PX)}")
    if num_samples < 4:
        raise ValueError(f"num_samples {num_samples}: must be 4 or more, three besides the centre determine a plane")
    # float32 is enough for all but the places; no operation below is one that autocast would run in less
    source = pixels_NCHW if pixels_NCHW.dtype == torch.float64 else pixels_NCHW.float()
    scale_N2, offset_N2 = in_window(place_N4, region_N3, source.shape[-2:])
    grid_NKK2 = _grid(scale_N2.to(source.dtype), offset_N2.to(source.dtype), out_px)
    if method == "bilinear" or not (grid_NKK2.requires_grad and torch.is_grad_enabled()):
        return _bilinear(source, grid_NKK2)
    spread_N2 = _noise_spread(scale_N2, source.shape[-2:], out_px, noise_out_px, noise_window_px)
    noise = _on_device(generator, source.device)
    slope_x, slope_y, intercept_NCKK = _fit(
        source.detach(), grid_NKK2.detach(), spread_N2.to(source.dtype), num_samples - 1, noise
    )
    moved_x, moved_y = (grid_NKK2 - grid_NKK2.detach())[:, None].unbind(dim=-1)  # zero; carry the gradient
    value = _bilinear(source, grid_NKK2.detach()) + slope_x * moved_x + slope_y * moved_y
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


def _on_device(generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """The generator itself, or one of `device` seeded by it: drawing millions of numbers elsewhere would be slow."""
    if generator is None or generator.device.type == device.type:
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(seed))


class _Sums:
    """Sums over samples of noise u and differences y that a least-squares plane needs; all (N, 1 or C, K, K)."""

    def __init__(self, y_NCKK: Tensor) -> None:
        one_N1KK = y_NCKK[:, :1]
        self.x, self.y, self.xx, self.yy, self.xy = (torch.zeros_like(one_N1KK) for _ in range(5))
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

    def plane(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes along x and y, and the intercept: least squares by covariances, with a ridge on the slopes."""
        ridge = RIDGE * self.count
        xx = self.xx - self.x.square() / self.count + ridge
        yy = self.yy - self.y.square() / self.count + ridge
        xy = self.xy - self.x * self.y / self.count
        along_x = self.value_x - self.value * (self.x / self.count)
        along_y = self.value_y - self.value * (self.y / self.count)
        determinant = xx * yy - xy.square()
        slope_x = (yy * along_x - xy * along_y) / determinant
        slope_y = (xx * along_y - xy * along_x) / determinant
        return slope_x, slope_y, (self.value - slope_x * self.x - slope_y * self.y) / self.count


@torch.no_grad()
def _fit(
    source_NCHW: Tensor, grid_NKK2: Tensor, spread_N2: Tensor, num_samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes along x and y and intercepts of planes fitted to noisy samples around each point, each (N, C, K, K).

    The regression runs on noise of unit spread, which keeps it well conditioned at any zoom, and one sample at a time,
    which keeps it as small in memory as one sample.
    """
    base_NCKK = _bilinear(source_NCHW, grid_NKK2)
    spread_N112 = spread_N2[:, None, None]
    sums = _Sums(base_NCKK)
    for _ in range(num_samples):
        unit_NKK2 = torch.randn(grid_NKK2.shape, generator=generator, dtype=grid_NKK2.dtype, device=grid_NKK2.device)
        sums.add(unit_NKK2, _bilinear(source_NCHW, torch.addcmul(grid_NKK2, unit_NKK2, spread_N112)) - base_NCKK)
    slope_x, slope_y, intercept = sums.plane()
    spread_x, spread_y = spread_N2[:, :, None, None, None].unbind(dim=1)  # (N, 1, 1, 1) each
    return slope_x / spread_x, slope_y / spread_y, intercept
