"""Controls: the same classifier without the zooming, which a MagNet has to beat.

Both controls are trained and run in the same way as a `MagNet` and differ from it only in where they look. They keep
its unused locators, so that the state of a MagNet can be loaded into them.

Shape letters: B slides, N last patches, C channels, H W pixels, 3 (s, tx, ty).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magnet.affine import limit_centre
from magnet.config import ModelConfig
from magnet.windows import WindowRequest, Windows
from magnet.zoom import MagNet, ZoomOptions, ZoomResult, clamp_to_native, find_tissue, make_result, make_roots, shrink


class RandomTissue(MagNet):
    """A control that looks at boxes whose centres are uniform on the tissue of the root view.

    This is the strong control: it sees as many patches of the same sizes through the same encoder and head.

    Args:
        config: settings of the MagNet that it is compared with.
        half_side_N: half-sides of the boxes in root coordinates, one for each last patch.
        to_be_loaded: whether a checkpoint will provide all weights; see `MagNet`.

    Raises:
        ValueError: the number of half-sides is not that of the last patches.
    """

    half_side_N: Tensor
    """Half-sides of the boxes; part of the state, so that a loaded control looks at boxes of the same sizes."""

    def __init__(self, config: ModelConfig, half_side_N: Sequence[float], *, to_be_loaded: bool = False) -> None:
        super().__init__(config, to_be_loaded=to_be_loaded)
        if len(half_side_N) != config.zoom.num_patches:
            raise ValueError(f"{len(half_side_N)} half-sides for {config.zoom.num_patches} patches: give one per patch")
        self.register_buffer("half_side_N", torch.tensor(half_side_N, dtype=torch.float64))

    def zoom(
        self, side_px_B: NDArray[np.float64], options: ZoomOptions | None = None
    ) -> Generator[WindowRequest, Windows, ZoomResult]:
        """Look at the root and at random boxes, drawn by the generator of the options; see `MagNet.zoom`.

        Exploration and the stop criterion have no effect.
        """
        options, zoom = options or ZoomOptions(), self.config.zoom
        root = yield from self.look(0, make_roots(len(side_px_B), self.device), options)
        tissue_B1HW = find_tissue(shrink(root.view_BNCHW, zoom.map_px))
        box_BN3 = self._draw_boxes(tissue_B1HW[:, 0], options.generator)
        box_BN3 = clamp_to_native(box_BN3, zoom.patch_px, side_px_B)
        patches = yield from self.look(zoom.num_layers, box_BN3, options)
        records = [root.make_record(tissue_B1HW), patches.make_record(find_tissue(patches.view_BNCHW))]
        return make_result(self.head(self.encode(patches.view_BNCHW)), records)

    def _draw_boxes(self, tissue_BHW: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return boxes (B, N, 3) centred on random tissue pixels, or on any pixels if there is no tissue."""
        b, high, wide = tissue_BHW.shape
        num = len(self.half_side_N)
        allowed_BHW = tissue_BHW | ~tissue_BHW.any(dim=(-2, -1), keepdim=True)
        # Drawn on the CPU, so that one generator gives the same boxes on every device.
        pixel_BN = torch.multinomial(allowed_BHW.flatten(1).float().cpu(), num, replacement=True, generator=generator)
        within_BN2 = torch.rand(b, num, 2, generator=generator)
        place_BN2 = (torch.stack([pixel_BN % wide, pixel_BN // wide], dim=-1) + within_BN2).to(self.device)
        centre_BN2 = place_BN2.double() * 2 / place_BN2.new_tensor([wide, high]) - 1
        half_BN = self.half_side_N.expand(b, num)
        return torch.cat([half_BN[..., None], limit_centre(centre_BN2, half_BN, "bounded")], dim=-1)


class Thumbnail(MagNet):
    """A control that looks only at the root view of a slide and classifies it.

    Args:
        config: settings of the MagNet that it is compared with; locators and schedule are not used.
    """

    def zoom(
        self, side_px_B: NDArray[np.float64], options: ZoomOptions | None = None
    ) -> Generator[WindowRequest, Windows, ZoomResult]:
        """Look at the root alone; see `MagNet.zoom`. Exploration and the stop criterion have no effect."""
        root = yield from self.look(0, make_roots(len(side_px_B), self.device), options or ZoomOptions())
        record = root.make_record(find_tissue(root.view_BNCHW))
        return make_result(self.head(self.encode(root.view_BNCHW)), [record])
