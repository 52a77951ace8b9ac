"""What a MagNet has to beat: the same classifier without the zooming.

Both are trained and driven as a `MagNet` is, and differ from it only in where they look.

Shape letters: B slides, N last patches, C channels, H W pixels, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magnet.affine import centre_from, clamp_native
from magnet.config import ModelConfig
from magnet.regions import native_scale
from magnet.views import area_pool, tissue_mask
from magnet.windows import WindowRequest, Windows
from magnet.zoom import MagNet, Trace, Zoomed, roots


class RandomTissue(MagNet):
    """Looks at boxes whose centres are uniform on the tissue of the root view.

    The control that bites: it sees as many patches of the same sizes through the same encoder and head.

    Args:
        config: as of the MagNet that it is a control of; the locators are not used.
        half_side_N: half-sides of the boxes in root coordinates, one for each last patch.
        to_be_loaded: as of `MagNet`.
    """

    half_side_N: Tensor
    """As given; part of the state."""

    def __init__(self, config: ModelConfig, half_side_N: Sequence[float], *, to_be_loaded: bool = False) -> None:
        super().__init__(config, to_be_loaded=to_be_loaded)
        if len(half_side_N) != config.zoom.num_patches:
            raise ValueError(f"{len(half_side_N)} half-sides for {config.zoom.num_patches} patches")
        self.register_buffer("half_side_N", torch.tensor(half_side_N, dtype=torch.float64))

    def zoom(
        self,
        side_px_B: NDArray[np.float64],
        *,
        explore: float = 0.0,
        theta_gradient: bool = True,
        generator: torch.Generator | None = None,
        keep_views: bool = False,
        enough: Callable[[Tensor], bool] | None = None,
    ) -> Generator[WindowRequest, Windows, Zoomed]:
        """As `MagNet.zoom`, with the root and the last layer alone, read whole; `generator` draws the places."""
        zoom, trace = self.config.zoom, Trace()
        root_B13 = roots(len(side_px_B), self.device)
        view_BNCHW = yield from self._look(0, root_B13, zoom.view_px, generator, trace, keep_views)
        tissue_BHW = tissue_mask(area_pool(view_BNCHW.flatten(0, 1), zoom.map_px))
        region_BN3 = self._on_tissue(tissue_BHW, generator)
        finest = [native_scale(zoom.patch_px, side) for side in side_px_B]
        region_BN3 = clamp_native(region_BN3, region_BN3.new_tensor(finest))
        patch_BNCHW = yield from self._look(zoom.num_layers, region_BN3, zoom.patch_px, generator, trace, keep_views)
        return self._classified(patch_BNCHW, trace)

    def _on_tissue(self, tissue_BHW: Tensor, generator: torch.Generator | None) -> Tensor:
        """(B, N, 3) boxes centred on random tissue pixels, anywhere where there is none."""
        b, high, wide = tissue_BHW.shape
        num = len(self.half_side_N)
        open_BHW = tissue_BHW | ~tissue_BHW.any(dim=(-2, -1), keepdim=True)
        pick_BN = torch.multinomial(open_BHW.flatten(1).float().cpu(), num, replacement=True, generator=generator)
        within_BN2 = torch.rand(b, num, 2, generator=generator)
        place_BN2 = (torch.stack([pick_BN % wide, pick_BN // wide], dim=-1) + within_BN2).to(self.device)
        centre_BN2 = place_BN2.double() * 2 / place_BN2.new_tensor([wide, high]) - 1
        half_BN = self.half_side_N.expand(b, num)
        return torch.cat([half_BN[..., None], centre_from(centre_BN2, half_BN, "bounded")], dim=-1)


class Thumbnail(MagNet):
    """Looks at the whole slide and nothing else, in the view that a MagNet begins with.

    Args:
        config: as of the MagNet that it is a control of; locators and schedule are not used.
    """

    def zoom(
        self,
        side_px_B: NDArray[np.float64],
        *,
        explore: float = 0.0,
        theta_gradient: bool = True,
        generator: torch.Generator | None = None,
        keep_views: bool = False,
        enough: Callable[[Tensor], bool] | None = None,
    ) -> Generator[WindowRequest, Windows, Zoomed]:
        """As `MagNet.zoom`, with the root alone."""
        trace = Trace()
        root_B13 = roots(len(side_px_B), self.device)
        view_BNCHW = yield from self._look(0, root_B13, self.config.zoom.view_px, generator, trace, keep_views)
        return self._classified(view_BNCHW, trace)
