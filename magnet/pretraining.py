"""Contrastive pretraining of a patch encoder, without labels.

A region is drawn on tissue at a size that last patches have. Its two views are random crops of it, mirrored, rotated,
restained and blurred. The encoder, with a small projection on top that is discarded afterwards, learns to give the two
views features that are closer to each other than to those of the batch's other regions.

Shape letters: N regions, C = 3 channels (RGB in [0, 1]), H W pixels, D features, 3 (s, tx, ty).

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
"""Temperature of the similarities. Source: SimCLR, table 5, where 0.1 is best."""
PROJECTION = 64
"""Dimension of a projection; in figure 8 of SimCLR 32 to 2048 make no difference."""

MIN_CROP = 0.6
"""Smallest side of a view's crop as a share of its region's side."""
STRENGTH_SPREAD, STAIN_SPREAD = 0.25, 0.1
"""Standard deviations of the logarithm of the stain, and of each entry of the matrix that mixes its channels."""
GREY_SHARE = 0.2
"""Share of the views that lose their colour. Source: SimCLR, appendix A."""
MAX_BLUR = 0.7
"""Largest share, 0 to 1, of the means over 3 x 3 pixels in a blurred view."""

_DARKEST = 1 / 256  # light that a black pixel is assumed to transmit, so that its density is finite


def patch_scale_range(config: ModelConfig, side_px: float) -> tuple[float, float]:
    """Return the range of half-sides that the last patches of a zoom can have.

    Args:
        config: settings of the network.
        side_px: side of the slide's root square in level-0 pixels.

    Returns:
        Smallest and largest half-side, in root coordinates.
    """
    zoom, locator = config.zoom, config.locator
    finest = native_scale(zoom.patch_px, int(side_px))
    frozen = zoom.frozen_patch and zoom.num_layers >= FROZEN_LAYER  # that layer does not magnify its frozen patch
    smallest, largest = locator.scale_min**zoom.num_layers, locator.scale_max ** (zoom.num_layers - frozen)
    return max(finest, smallest), max(finest, largest)


def draw_regions(
    tissue_HW: NDArray[np.bool_], scales: tuple[float, float], num: int, rng: np.random.Generator
) -> Floats:
    """Draw regions within the root square, centred on tissue except where the edge of the square moves them.

    Args:
        tissue_HW: boolean mask of the tissue in the root view; true somewhere.
        scales: smallest and largest half-side; the logarithm is drawn uniformly between theirs.
        num: number of regions.
        rng: source of the random numbers.

    Returns:
        (num, 3), in root coordinates.
    """
    row_column = np.argwhere(tissue_HW)[rng.integers(int(tissue_HW.sum()), size=num)]
    centre = (row_column[:, ::-1] + rng.uniform(size=(num, 2))) * 2 / tissue_HW.shape[::-1] - 1
    smallest, largest = np.log(scales)
    half = np.exp(rng.uniform(smallest, largest, size=(num, 1)))
    return np.concatenate([half, np.clip(centre, half - 1, 1 - half)], axis=1)


def crop(region_N3: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a random square inside each region, with `MIN_CROP` to 1 of its side.

    Args:
        region_N3: regions in root coordinates, float64.
        generator: source of the random numbers, on the CPU, as for all functions here.

    Returns:
        (N, 3), in root coordinates.
    """
    draw_N3 = torch.rand(region_N3.shape, generator=generator, dtype=region_N3.dtype).to(region_N3.device)
    side_N1 = MIN_CROP + (1 - MIN_CROP) * draw_N3[:, :1]
    centre_N2 = (2 * draw_N3[:, 1:] - 1) * (1 - side_N1)
    return compose(region_N3, torch.cat([side_N1, centre_N2], dim=1)[:, None])[:, 0]


def turn(view_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror and rotate square views, each to a random one of its eight frames."""
    flags_3N = torch.randint(2, (3, len(view_NCHW), 1, 1, 1), generator=generator).bool().to(view_NCHW.device)
    view_NCHW = torch.where(flags_3N[0], view_NCHW.transpose(-1, -2), view_NCHW)
    view_NCHW = torch.where(flags_3N[1], view_NCHW.flip(-1), view_NCHW)
    return torch.where(flags_3N[2], view_NCHW.flip(-2), view_NCHW)


def restain(view_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Change the stain of views as another laboratory might; some views lose their colour.

    Light decreases exponentially with the amount of dye, so that a stronger stain is a factor on the optical density,
    and another dye mixes the densities of the channels. Without this change a contrastive loss learns the slides'
    colours.

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
    """Blur views, each by a random amount, as if they were slightly out of focus."""
    share_N111 = MAX_BLUR * torch.rand((len(view_NCHW), 1, 1, 1), generator=generator).to(view_NCHW)
    smooth_NCHW = F.avg_pool2d(F.pad(view_NCHW, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.lerp(view_NCHW, smooth_NCHW, share_N111)


def make_projection(num_features: int) -> nn.Sequential:
    """Build the network from features (N, D) to the projections (N, `PROJECTION`) that the loss compares.

    Source: SimCLR, section 4.2.
    """
    return nn.Sequential(
        nn.Linear(num_features, num_features),
        nn.BatchNorm1d(num_features),
        nn.ReLU(),
        nn.Linear(num_features, PROJECTION),
    )


@dataclass(frozen=True, slots=True)
class ContrastiveResult:
    """Result of `contrastive_loss`."""

    loss: Tensor
    """Mean cross-entropy, a scalar; log(2 N - 1) for features without information."""
    accuracy: Tensor
    """Share of the views, 0 to 1, that are most similar to their partner; 1 / (2 N - 1) by chance."""


def contrastive_loss(first_ND: Tensor, second_ND: Tensor, temperature: float = TEMPERATURE) -> ContrastiveResult:
    """Compute the contrastive loss: each view is compared with all others, of which one shows the same region.

    Args:
        first_ND: projections of one view of each region.
        second_ND: projections of the other view, in the same order.
        temperature: number above 0 that cosines are divided by.

    Source: SimCLR, eq. 1 (NT-Xent).
    """
    unit = F.normalize(torch.cat([first_ND, second_ND]).float(), dim=1)
    is_itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    similarity = (unit @ unit.T / temperature).masked_fill(is_itself, -torch.inf)
    partner = torch.arange(len(unit), device=unit.device).roll(len(first_ND))
    accuracy = (similarity.detach().argmax(dim=1) == partner).float().mean()
    return ContrastiveResult(F.cross_entropy(similarity, partner), accuracy)
