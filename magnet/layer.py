"""A magnifying layer: from the views of its nodes to the regions of their children.

Shape letters: B slides, N nodes (parents), P children per parent, C channels, H W map pixels, 2 (x, y), 3 (s, tx, ty).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from magnet.affine import expected_score, limit_centre, limit_scale, moments, pixel_centres
from magnet.config import LocatorConfig
from magnet.evidence import interpolate_map
from magnet.sparsemax import normalise_maps, spatial_sparsemax
from magnet.stacks import Locator


@dataclass(frozen=True, slots=True)
class Placement:
    """The regions of a layer's children, and the maps that they come from."""

    theta_BNP3: Tensor
    """Regions (s, tx, ty) in the parents' coordinates."""
    map_BNPHW: Tensor
    """Maps of the conv stacks."""
    sparse_BNPHW: Tensor
    """Sparse maps whose moments are the regions; zero for a frozen child."""
    value_BNP: Tensor
    """Map at each child's centre: the logit of finding evidence there."""


class MagnifyingLayer(nn.Module):
    """Conv stacks, spatial sparsemax, moments.

    Args:
        num_parents: N, nodes of the layer above.
        num_children: P_l, children per node.
        frozen_first: whether the first child is its parent again (the paper, section 4.3).
        config: settings of the locator.

    Source: the paper, section 3.1.
    """

    def __init__(self, num_parents: int, num_children: int, *, frozen_first: bool, config: LocatorConfig) -> None:
        super().__init__()
        self.config, self.frozen_first, self.num_children = config, frozen_first, num_children
        self.locator = Locator(
            num_parents,
            num_children,
            share=config.share_stacks,
            channels=config.channels,
            inner_stride=config.inner_stride,
            padding=config.padding,
        )

    def forward(
        self, view_BNCHW: Tensor, tissue_BNHW: Tensor, exploration: float, generator: torch.Generator | None
    ) -> Placement:
        """Place the children of every node.

        Args:
            view_BNCHW: I of each node, in [0, 1].
            tissue_BNHW: boolean, true on tissue; used by the mask and by exploration.
            exploration: probability, 0 to 1, that a child is placed at random on tissue.
            generator: source of the random numbers of exploration, on the CPU.
        """
        config = self.config
        map_BNPHW = self.locator(view_BNCHW).float()
        allowed_BNHW = tissue_BNHW if config.tissue_mask else torch.ones_like(tissue_BNHW)
        thetas, sparse = [], []
        # Children are placed one after the other, because each may forbid positions to its later siblings.
        for child in range(self.num_children):
            if self.frozen_first and child == 0:
                thetas.append(_identity_theta(map_BNPHW))
                sparse.append(torch.zeros_like(map_BNPHW[:, :, 0]))
                continue
            theta_BN3, sparse_BNHW = _place(map_BNPHW[:, :, child], allowed_BNHW, config)
            if exploration > 0:
                theta_BN3 = _explore(theta_BN3, tissue_BNHW & allowed_BNHW, exploration, generator)
            if config.inhibit_siblings:
                allowed_BNHW = allowed_BNHW & ~_occupied_positions(theta_BN3, allowed_BNHW, config.inhibit_radius)
            thetas.append(theta_BN3)
            sparse.append(sparse_BNHW)
        theta_BNP3 = torch.stack(thetas, dim=2)
        value_BNP = interpolate_map(map_BNPHW, theta_BNP3[..., None, 1:])[..., 0]
        return Placement(theta_BNP3, map_BNPHW, torch.stack(sparse, dim=2), value_BNP)


def _place(map_BNHW: Tensor, allowed_BNHW: Tensor, config: LocatorConfig) -> tuple[Tensor, Tensor]:
    """Place one child per node; return its theta (B, N, 3) and the sparse map that it comes from."""
    allowed_BNHW = _allow_all_if_empty(allowed_BNHW)
    if config.peak_radius is not None:
        allowed_BNHW = allowed_BNHW & _positions_near_peak(map_BNHW, allowed_BNHW, config.peak_radius)
    if config.normalise_maps:
        score_BNHW = normalise_maps(map_BNHW, config.temperature, allowed_BNHW)
    else:
        score_BNHW = (map_BNHW * config.temperature).masked_fill(~allowed_BNHW, -torch.inf)
    sparse_BNHW = spatial_sparsemax(score_BNHW)
    if config.spread == "expected":
        mean_BN2, _ = moments(sparse_BNHW)
        # Forbidden positions have a score of -inf, and -inf times 0 would be NaN.
        spread_BN = expected_score(score_BNHW.masked_fill(sparse_BNHW == 0, 0), sparse_BNHW)
    else:
        mean_BN2, spread_BN = moments(sparse_BNHW, config.spread)
    scale_BN = limit_scale(spread_BN, config.scale_clamp, config.scale_min, config.scale_max)
    centre_BN2 = limit_centre(mean_BN2, scale_BN, config.centre)
    return torch.cat([scale_BN[..., None], centre_BN2], dim=-1), sparse_BNHW


def _identity_theta(like: Tensor) -> Tensor:
    """Return the theta (B, N, 3) of children that are their parents again."""
    return torch.tensor([1.0, 0.0, 0.0], device=like.device).expand(*like.shape[:2], 3)


def _allow_all_if_empty(allowed_BNHW: Tensor) -> Tensor:
    """Return the mask, with all positions allowed where it allows none."""
    # A view without tissue must still have a child: the work does not depend on what a slide shows.
    return allowed_BNHW | ~allowed_BNHW.any(dim=(-2, -1), keepdim=True)


def _positions_near_peak(map_BNHW: Tensor, allowed_BNHW: Tensor, radius: float) -> Tensor:
    """Return the positions within `radius` (in half-sides of the view) of each map's largest allowed value.

    Without this limit the mean of a map with two peaks is between them, where there may be nothing.
    """
    position_HW2 = _positions(map_BNHW)
    peak_BN = map_BNHW.masked_fill(~allowed_BNHW, -torch.inf).flatten(-2).argmax(dim=-1)
    peak_BN112 = position_HW2.flatten(0, 1)[peak_BN][:, :, None, None]
    return (position_HW2 - peak_BN112).square().sum(dim=-1) <= radius**2


def _occupied_positions(theta_BN3: Tensor, like_BNHW: Tensor, radius: float) -> Tensor:
    """Return the positions inside each region or within the radius of its centre."""
    theta_BN113 = theta_BN3.detach()[:, :, None, None]
    distance_BNHW2 = (_positions(like_BNHW) - theta_BN113[..., 1:]).abs()
    inside_BNHW = (distance_BNHW2 <= theta_BN113[..., :1]).all(dim=-1)
    return inside_BNHW | (distance_BNHW2.square().sum(dim=-1) <= radius**2)


def _explore(theta_BN3: Tensor, allowed_BNHW: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Move regions, with a probability, to a random allowed position; their scale stays.

    The centre is limited as by "bounded", whatever the settings say: such a region contains the position that was
    drawn, which a tanh of that position could move out of it.
    """
    b, n = theta_BN3.shape[:2]
    # Drawn on the CPU, so that one generator gives the same regions on every device.
    weight = _allow_all_if_empty(allowed_BNHW).reshape(b * n, -1).float().cpu()
    position_BN = torch.multinomial(weight, 1, generator=generator).reshape(b, n).to(theta_BN3.device)
    moved_BN1 = (torch.rand(b, n, 1, generator=generator) < probability).to(theta_BN3.device)
    scale_BN = theta_BN3[..., 0].detach()
    centre_BN2 = limit_centre(_positions(allowed_BNHW).flatten(0, 1)[position_BN], scale_BN, "bounded")
    return torch.where(moved_BN1, torch.cat([scale_BN[..., None], centre_BN2], dim=-1), theta_BN3)


def _positions(map_HW: Tensor) -> Tensor:
    """Return (x, y) of each pixel's centre in [-1, 1]; shape (H, W, 2), float32."""
    like = torch.empty(0, device=map_HW.device)
    y, x = (pixel_centres(size, like=like) for size in map_HW.shape[-2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
