"""From a sparse map to a region: moments, limits of (s, tx, ty), composition of regions.

Positions are pixel centres in [-1, 1]; the outer pixels' edges are at -1 and 1 (what torch calls
``align_corners=False``).

Shape letters: B slides, N parents, P children per parent, H W map pixels, 2 (x, y), 3 (s, tx, ty); ``...`` stands for
any leading dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Spread = Literal["rms", "l2"]
ScaleLimit = Literal["hard", "straight_through", "softplus"]
CentreLimit = Literal["tanh", "bounded"]


def pixel_centres(size: int, *, like: Tensor) -> Tensor:
    """Return the centres of `size` pixels that tile [-1, 1], in the dtype and on the device of `like`; (size,)."""
    return (2 * torch.arange(size, dtype=like.dtype, device=like.device) + 1) / size - 1


def compose(parent_BN3: Tensor, child_BNP3: Tensor) -> Tensor:
    """Convert children from their parents' coordinates to the coordinates that the parents are given in.

    Args:
        parent_BN3: parents, in root coordinates.
        child_BNP3: children, each relative to its parent.

    Returns:
        (B, N, P, 3): ``S = S_p * s`` and ``T = S_p * t + T_p``.

    Source: the paper, section 3.1, eq. 4, applied recursively.
    """
    scale = parent_BN3[..., None, :1]
    return torch.cat([scale * child_BNP3[..., :1], scale * child_BNP3[..., 1:] + parent_BN3[..., None, 1:]], dim=-1)


def moments(p_HW: Tensor, spread: Spread = "rms") -> tuple[Tensor, Tensor]:
    """Compute the mean position and the spread of probability maps.

    Args:
        p_HW: maps that sum to 1, shape (..., H, W).
        spread: "rms" is the root mean square distance from the mean per axis (0.577 for a large uniform map), "l2" the
            mean Euclidean distance from it (0.765).

    Returns:
        Mean, shape (..., 2), in [-1, 1], and spread, shape (...), 0 or more.

    Raises:
        ValueError: unknown spread.

    Source: the paper, section 3.1 leaves the formula to an appendix; this reading is the one consistent with its
    eqs. 1 to 3 (the mean places the region, the spread sizes it).
    """
    x_W, y_H = pixel_centres(p_HW.shape[-1], like=p_HW), pixel_centres(p_HW.shape[-2], like=p_HW)
    # Marginals are enough for the means and for "rms"; only "l2" needs the whole map.
    p_W, p_H = p_HW.sum(dim=-2), p_HW.sum(dim=-1)
    mean = torch.stack([(p_W * x_W).sum(dim=-1), (p_H * y_H).sum(dim=-1)], dim=-1)
    from_x, from_y = x_W - mean[..., :1], y_H - mean[..., 1:]
    if spread == "rms":
        square = (p_W * from_x.square()).sum(dim=-1) + (p_H * from_y.square()).sum(dim=-1)
        return mean, _sqrt(square / 2)
    if spread == "l2":
        distance_HW = _sqrt(from_x.square()[..., None, :] + from_y.square()[..., :, None])
        return mean, (p_HW * distance_HW).sum(dim=(-2, -1))
    raise ValueError(f"spread {spread!r}: must be 'rms' or 'l2'")


def expected_score(map_HW: Tensor, p_HW: Tensor) -> Tensor:
    """Return the mean score under the map's own distribution: another reading of how a map sizes its region.

    Args:
        map_HW: scores, shape (..., H, W).
        p_HW: their distribution, of the same shape.

    Returns:
        Shape (...).

    Source: the paper, section 3.1, taken literally ("the expected value translates to the scaling parameter").
    """
    return (map_HW.to(p_HW.dtype) * p_HW).sum(dim=(-2, -1))


def limit_scale(spread: Tensor, limit: ScaleLimit = "hard", s_min: float = 0.05, s_max: float = 1.0) -> Tensor:
    """Convert the spread of a map to the half-side of its region, within [s_min, s_max].

    Args:
        spread: any shape.
        limit: "hard" is the paper's maximum, without gradient beyond a limit; "straight_through" has the same value
            and passes the gradient on; "softplus" approaches `s_min` smoothly and never quite reaches it.
        s_min: smallest half-side, in the parent's coordinates.
        s_max: largest half-side.

    Raises:
        ValueError: unknown limit, or bounds that are not 0 < s_min <= s_max.

    Source: the paper, section 3.1, eq. 1, for "hard".
    """
    if not 0 < s_min <= s_max:
        raise ValueError(f"s_min {s_min}, s_max {s_max}: must be 0 < s_min <= s_max")
    if limit == "hard":
        return spread.clamp(s_min, s_max)
    if limit == "straight_through":
        return _straight_through(spread, spread.clamp(s_min, s_max))
    if limit == "softplus":
        return (s_min + F.softplus(spread - s_min, beta=1 / s_min)).clamp_max(s_max)
    raise ValueError(f"limit {limit!r}: must be 'hard', 'straight_through' or 'softplus'")


def limit_centre(mean_2: Tensor, scale: Tensor, limit: CentreLimit = "tanh") -> Tensor:
    """Convert the mean of a map to the centre of its region.

    Args:
        mean_2: mean positions, shape (..., 2).
        scale: half-sides, shape (...).
        limit: "tanh" is the paper's, with which no region reaches beyond tanh(1) + s = 0.76 + s; "bounded" keeps the
            region inside its parent, |t| <= 1 - s, and passes the gradient on as if there were no bound.

    Returns:
        (..., 2), in [-1, 1].

    Raises:
        ValueError: unknown limit.

    Source: the paper, section 3.1, eqs. 2 and 3, for "tanh".
    """
    if limit == "tanh":
        return mean_2.tanh()
    if limit == "bounded":
        room = (1 - scale).clamp_min(0)[..., None]
        return _straight_through(mean_2, mean_2.clamp(-room, room))
    raise ValueError(f"limit {limit!r}: must be 'tanh' or 'bounded'")


def clamp_scale(region_B3: Tensor, min_scale_B: Tensor) -> Tensor:
    """Enlarge regions that are smaller than the smallest scale of their slide.

    The gradient passes as if there were no clamp, so that a node that has reached native resolution can grow again.

    Args:
        region_B3: regions, shape (B, ..., 3).
        min_scale_B: smallest half-side of each slide; see `magnet.regions.native_scale`.
    """
    scale = region_B3[..., :1]
    floor = min_scale_B.to(scale.dtype).view(-1, *[1] * (scale.ndim - 1))
    return torch.cat([_straight_through(scale, torch.maximum(scale, floor)), region_B3[..., 1:]], dim=-1)


def _straight_through(free: Tensor, limited: Tensor) -> Tensor:
    """Return the value of `limited` with the gradient of `free`."""
    return limited.detach() + (free - free.detach())


def _sqrt(square: Tensor) -> Tensor:
    """Return the square root, with gradient 0 at 0, where that of `torch.sqrt` is infinite."""
    positive = square > 0
    # The inner `where` keeps zeros out of sqrt: their infinite gradient times 0 would be NaN.
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
