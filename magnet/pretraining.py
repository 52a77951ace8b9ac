"""Pretraining of a patch encoder without labels: two views of one region are to be told from views of all others.

A region is drawn on tissue at a size that last patches have. Its two views are random crops of it, mirrored, turned,
restained and blurred; the encoder, with a small projection on top that is thrown away afterwards, learns to give them
features closer to each other than to those of the batch's other regions.

Shapes: ``N`` regions, ``C`` = 3 channels (RGB in [0, 1]), ``H W`` pixels, ``D`` features, 3 (s, tx, ty).

Source: Chen et al., A simple framework for contrastive learning of visual representations, ICML 2020 (SimCLR).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from magnet.affine import compose
from magnet.config import ModelConfig
from magnet.regions import Floats, native_scale
from magnet.zoom import FROZEN_LAYER

TEMPERATURE = 0.1
"""Of the similarities. Source: SimCLR, table 5, which found 0.1 best."""
PROJECTION = 64
"""Numbers that a projection has; SimCLR, figure 8, found no difference from 32 to 2048."""

MIN_CROP = 0.6
"""Smallest side of a view's crop as a share of its region's side."""
STRENGTH_SPREAD, STAIN_SPREAD = 0.25, 0.1
"""Standard deviations: of the logarithm of the overall stain, and of each entry of the mixing of its channels."""
GREY_SHARE = 0.2
"""Share of the views that lose their colour. Source: SimCLR, appendix A."""
MAX_BLUR = 0.7
"""A view is mixed with its means over 3 x 3 pixels in a share of 0 to this."""

_DARKEST = 1 / 256  # the light that a black pixel of 8 bits lets through, so that its density is finite


def patch_scales(config: ModelConfig, side_px: float) -> tuple[float, float]:
    """Smallest and largest half-side, in root coordinates, that the last patches of a zoom can have.

    Args:
        config: of the network.
        side_px: side of the slide's root square in level-0 pixels.
    """
    zoom, locator = config.zoom, config.locator
    finest = native_scale(zoom.patch_px, int(side_px))
    frozen = zoom.frozen_patch and zoom.num_layers >= FROZEN_LAYER  # one layer does not magnify that patch
    smallest, largest = locator.scale_min**zoom.num_layers, locator.scale_max ** (zoom.num_layers - frozen)
    return max(finest, smallest), max(finest, largest)


def draw_regions(
    tissue_HW: NDArray[np.bool_], scales: tuple[float, float], num: int, rng: np.random.Generator
) -> Floats:
    """Regions within the root square, centred on its tissue as far as that goes.

    Args:
        tissue_HW: where the root view shows tissue, somewhere at least.
        scales: smallest and largest half-side; their logarithms are drawn evenly.
        num: how many.
        rng: source of all that is random.

    Returns:
        (num, 3), in root coordinates.
    """
    row_column = np.argwhere(tissue_HW)[rng.integers(int(tissue_HW.sum()), size=num)]
    centre = (row_column[:, ::-1] + rng.uniform(size=(num, 2))) * 2 / tissue_HW.shape[::-1] - 1
    smallest, largest = np.log(scales)
    half = np.exp(rng.uniform(smallest, largest, size=(num, 1)))
    return np.concatenate([half, np.clip(centre, half - 1, 1 - half)], axis=1)


def crop(region_N3: Tensor, generator: torch.Generator) -> Tensor:
    """Random squares inside regions, with `MIN_CROP` to 1 of their side; (N, 3).

    Args:
        region_N3: in root coordinates, float64.
        generator: of the CPU, as for all functions here.
    """
    draw_N3 = torch.rand(region_N3.shape, generator=generator, dtype=region_N3.dtype).to(region_N3.device)
    side_N1 = MIN_CROP + (1 - MIN_CROP) * draw_N3[:, :1]
    centre_N2 = (2 * draw_N3[:, 1:] - 1) * (1 - side_N1)
    return compose(region_N3, torch.cat([side_N1, centre_N2], dim=1)[:, None])[:, 0]


def turn(view_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Square views, each in one of its eight mirrored and turned frames."""
    flags_3N = torch.randint(2, (3, len(view_NCHW), 1, 1, 1), generator=generator).bool().to(view_NCHW.device)
    view_NCHW = torch.where(flags_3N[0], view_NCHW.transpose(-1, -2), view_NCHW)
    view_NCHW = torch.where(flags_3N[1], view_NCHW.flip(-1), view_NCHW)
    return torch.where(flags_3N[2], view_NCHW.flip(-2), view_NCHW)


def restain(view_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Views as another laboratory might have stained them; some without colour.

    Light falls off exponentially with the dye, so that a stronger stain is a factor on the optical density, and another
    dye a mixing of the channels' densities. A contrastive loss without this learns the slides' colours.

    Source: Tellez et al., Whole-slide mitosis detection in H&E breast histology, TMI 2018, whose factors are on the
    densities of two dyes.
    """
    num = len(view_NCHW)
    strength_N11 = (STRENGTH_SPREAD * torch.randn((num, 1, 1), generator=generator)).exp()
    mixing_NCC = strength_N11 * (torch.eye(3) + STAIN_SPREAD * torch.randn((num, 3, 3), generator=generator))
    grey_N11 = torch.rand((num, 1, 1), generator=generator) < GREY_SHARE
    mixing_NCC = torch.where(grey_N11, mixing_NCC.mean(dim=1, keepdim=True), mixing_NCC).to(view_NCHW)
    density_NCP = -view_NCHW.clamp(_DARKEST, 1).log().flatten(2)
    return (-(mixing_NCC @ density_NCP)).exp().clamp(0, 1).view_as(view_NCHW)


def blur(view_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Views a little out of focus, each by another amount."""
    share_N111 = MAX_BLUR * torch.rand((len(view_NCHW), 1, 1, 1), generator=generator).to(view_NCHW)
    smooth_NCHW = F.avg_pool2d(F.pad(view_NCHW, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.lerp(view_NCHW, smooth_NCHW, share_N111)


def make_projection(num_features: int) -> nn.Sequential:
    """From features (N, D) to what the loss compares, (N, `PROJECTION`). Source: SimCLR, section 4.2."""
    return nn.Sequential(
        nn.Linear(num_features, num_features),
        nn.BatchNorm1d(num_features),
        nn.ReLU(),
        nn.Linear(num_features, PROJECTION),
    )


@dataclass(frozen=True, slots=True)
class Contrast:
    """How well views find their partners."""

    loss: Tensor
    """Mean cross-entropy, a scalar; log(2 N - 1) for features that say nothing."""
    found: Tensor
    """Share of the views, 0 to 1, that are most similar to their partner; 1 / (2 N - 1) by chance."""


def contrast(first_ND: Tensor, second_ND: Tensor, temperature: float = TEMPERATURE) -> Contrast:
    """Each view against all others of both sets: which is the other view of the same region?

    Args:
        first_ND: projections of one view of each region.
        second_ND: of the other view, in the same order.
        temperature: cosines are divided by it.

    Source: SimCLR, eq. 1 (NT-Xent).
    """
    unit = F.normalize(torch.cat([first_ND, second_ND]).float(), dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    similarity = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    partner = torch.arange(len(unit), device=unit.device).roll(len(first_ND))
    found = (similarity.detach().argmax(dim=1) == partner).float().mean()
    return Contrast(F.cross_entropy(similarity, partner), found)
