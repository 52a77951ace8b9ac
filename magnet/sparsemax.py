"""Sparse probability maps: sparsemax, and the normalisation that keeps its input at a useful scale.

Shape letters: H W map pixels, R rows of D entries; ``...`` stands for any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

NUM_LARGEST = 64
"""Number of largest entries that are searched first; only rows with a wider support are searched as a whole."""

STD_FLOOR = 1e-6
"""Standard deviation below which a map counts as flat: it is centred, but not scaled up to unit spread."""


def sparsemax(z: Tensor, dim: int = -1) -> Tensor:
    """Project `z` onto the probability simplex along `dim`, by Euclidean distance.

    The threshold is exact, without the error of a bisection. float64 stays float64; everything else is computed and
    returned in float32, also under autocast, because sums of some 3,000 small numbers are wrong by a per cent in half
    precision.

    Args:
        z: scores of any shape and scale; -inf marks entries that must become exactly 0 (not all of a row).
        dim: the dimension that becomes a distribution.

    Returns:
        The shape of `z`, in [0, 1], summing to 1 along `dim`, exactly 0 outside the support.

    Source: Martins and Astudillo 2016, arXiv 1602.02068 (threshold and derivative).
    """
    exact = z if z.dtype == torch.float64 else z.float()
    return _Sparsemax.apply(exact.movedim(dim, -1)).movedim(-1, dim)


def spatial_sparsemax(map_HW: Tensor) -> Tensor:
    """Apply `sparsemax` over all positions of each map.

    Args:
        map_HW: scores, shape (..., H, W).

    Returns:
        The same shape; each map sums to 1.

    Source: the paper, section 3.1, "Spatial Transformer".
    """
    return sparsemax(map_HW.flatten(-2)).unflatten(-1, map_HW.shape[-2:])


def normalise_maps(map_HW: Tensor, temperature: float | Tensor = 1.0, mask_HW: Tensor | None = None) -> Tensor:
    """Scale maps to zero mean and unit spread, times a temperature: input for `spatial_sparsemax`.

    Sparsemax is not invariant to scale: of 3,136 normal scores with a spread of 0.001, 0.1 and 3, about 1,350, 30 and 2
    stay above zero. With normalised maps the temperature alone decides this number.

    Args:
        map_HW: scores, shape (..., H, W).
        temperature: spread of the result; with 0.03 many positions stay above zero, with 3 one or two.
        mask_HW: boolean, broadcastable to `map_HW`; mean and spread are computed over True positions, the others become
            -inf. A map whose mask is empty is treated as if it had no mask.

    Returns:
        (..., H, W), float32 (float64 for float64).
    """
    scores = map_HW if map_HW.dtype == torch.float64 else map_HW.float()
    keep = torch.ones_like(scores, dtype=torch.bool) if mask_HW is None else mask_HW.expand_as(scores)
    keep = keep | ~keep.any(dim=(-2, -1), keepdim=True)
    count = keep.sum(dim=(-2, -1), keepdim=True)
    centred = scores - (scores * keep).sum(dim=(-2, -1), keepdim=True) / count
    variance = (centred.square() * keep).sum(dim=(-2, -1), keepdim=True) / count
    scaled = centred * (variance + STD_FLOOR**2).rsqrt() * temperature
    return scaled.masked_fill(~keep, -torch.inf)


class _Sparsemax(torch.autograd.Function):
    """`sparsemax` over the last dimension, with its derivative in closed form."""

    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor) -> Tensor:
        shifted = z - z.amax(dim=-1, keepdim=True)
        threshold = _threshold(shifted.reshape(-1, z.shape[-1])).view(*z.shape[:-1], 1)
        p = (shifted - threshold).clamp_min_(0)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors  # type: ignore[attr-defined]  # torch types FunctionCtx without it
        support = p > 0
        kept = grad * support
        mean = kept.sum(dim=-1, keepdim=True) / support.sum(dim=-1, keepdim=True)
        return kept - mean * support


def _threshold(z_RD: Tensor) -> Tensor:
    """Return the tau of each row with ``sum(max(z - tau, 0)) = 1``; shape (R, 1)."""
    size = min(NUM_LARGEST, z_RD.shape[-1])
    largest = z_RD.topk(size, dim=-1).values
    excess = largest.cumsum(dim=-1) - 1
    rank = torch.arange(1, size + 1, device=z_RD.device, dtype=z_RD.dtype)
    support = (rank * largest > excess).sum(dim=-1, keepdim=True).clamp_min(1)
    tau = excess.gather(-1, support - 1) / support
    wider = (support == size).squeeze(-1)  # the support may contain more than the largest entries
    if size < z_RD.shape[-1] and bool(wider.any()):
        tau[wider] = _newton(z_RD[wider], tau[wider])
    return tau


def _newton(z_RD: Tensor, tau: Tensor) -> Tensor:
    """Return the threshold of each row by Newton steps from a lower bound.

    ``sum(max(z - tau, 0))`` is convex and piecewise linear, so steps from below never overshoot: the support only
    shrinks, and as soon as it stays the same the threshold is exact. Five to ten steps are usual. A row that is done
    stays as it is, so that its result does not depend on the other rows.
    """
    smallest = torch.full_like(tau, z_RD.shape[-1] + 1, dtype=torch.long)
    while True:
        over = (z_RD - tau).clamp_min_(0)
        support = torch.count_nonzero(over, dim=-1).unsqueeze(-1)
        shrank = support < smallest  # not "differs": with rounding a support could alternate for ever
        if not bool(shrank.any()):
            return tau
        step = (over.sum(dim=-1, keepdim=True) - 1) / support.clamp_min(1)
        tau = torch.where(shrank, tau + step, tau)
        smallest = torch.minimum(smallest, support)
