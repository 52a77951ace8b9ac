"""The MagNet: a zoom through the pyramid of a slide, as a generator.

`MagNet.zoom` yields the regions that it wants to see next (`WindowRequest`), is sent their windows, layer after layer,
and returns logits and trace. Training, scoring and tests all run this generator, so that figures drawn from the trace
show the pass that computed the score.

Shape letters: B slides, N nodes of a layer, P children per parent, C channels, H W pixels, D features, 3 (s, tx, ty).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from magnet.affine import clamp_scale, compose
from magnet.auxiliary import make_auxiliary_classifier
from magnet.config import ModelConfig
from magnet.encoder import make_encoder
from magnet.evidence import interpolate_at_patches
from magnet.heads import EvidenceHead, RecurrentHead, SlideLogits
from magnet.layer import MagnifyingLayer
from magnet.regions import native_scale
from magnet.sampler import sample
from magnet.trace import LayerRecord, Trace, concatenate_nodes
from magnet.views import area_pool, grey_filter, tissue_mask
from magnet.weights import FetchBytes
from magnet.windows import WindowRequest, Windows

FROZEN_LAYER = 2
"""Layer whose regions include the frozen patch. Source: the paper, section 4.3."""

SAMPLE_CHUNK = 64
"""Windows that are converted to float at once, which limits the memory that sampling needs."""

PATCHES_PER_READ = 4
"""Last patches that a zoom with early stopping reads before each call of the stop criterion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZoomOptions:
    """Options of one zoom, which may differ from step to step with the same model."""

    exploration: float = 0.0
    """Probability, 0 to 1, that a region is placed at random on tissue."""
    theta_gradient: bool = True
    """Whether gradients reach the regions through the sampler."""
    generator: torch.Generator | None = None
    """Source of the random numbers of exploration and sampler noise, on the CPU; None: torch's global generator."""
    keep_views: bool = False
    """Whether the trace keeps the views."""
    should_stop: Callable[[Tensor], bool] | None = None
    """Stop criterion, used in evaluation only: the last patches are read a few at a time, in order, and after each read
    it is called with the running logit (B, N so far). True ends the zoom; patches that were not read are absent from
    the trace. None: all last patches are read at once."""

    def __post_init__(self) -> None:
        if not 0 <= self.exploration <= 1:
            raise ValueError(f"exploration = {self.exploration!r}: must be 0 to 1")


@dataclass(frozen=True, slots=True)
class ZoomResult:
    """The result of a zoom."""

    logit_B: Tensor
    """Logit of the slide."""
    running_BN: Tensor
    """Logit of the slide after each last patch."""
    patch_BN: Tensor | None
    """Logit of each last patch by itself; None unless the model has the evidence head."""
    trace: Trace
    """Regions, tissue and views of all layers."""
    value_BN: list[Tensor] = field(default_factory=list)
    """Per layer 1 to L (B, N): the locator's value at the centre of each region."""
    patch_value_BN: list[Tensor] = field(default_factory=list)
    """Per layer 1 to L (B, last patches): the locator's value at each last patch below; filled in training only."""
    early_B: Tensor | None = None
    """Logit of the auxiliary classifier on the early layer; None in evaluation."""
    late_B: Tensor | None = None
    """Logit of the auxiliary classifier on the late layer; None in evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerViews:
    """The views of one layer's nodes, and what the record of the layer takes from their windows."""

    view_BNCHW: Tensor
    """Views in [0, 1]; they carry the gradient to the regions."""
    region_BN3: NDArray[np.float64]
    """Regions in root coordinates."""
    downsample_BN: NDArray[np.float64]
    """Level-0 pixels per pixel of the window that was read."""
    keep: bool
    """Whether the record keeps the views."""

    def make_record(self, tissue_BNHW: Tensor, value_BN: Tensor | None = None) -> LayerRecord:
        """Make the layer's record.

        Args:
            tissue_BNHW: boolean, true where a view shows tissue, at any resolution.
            value_BN: the locator's value of each region; None if no locator chose them.
        """
        view_BNHWC = None
        if self.keep:
            view_BNHWC = (self.view_BNCHW.detach() * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()
        return LayerRecord(
            region_BN3=self.region_BN3,
            downsample_BN=self.downsample_BN,
            tissue_BN=tissue_BNHW.float().mean(dim=(-2, -1)).cpu().numpy(),
            value_BN=None if value_BN is None else value_BN.detach().float().cpu().numpy(),
            view_BNHWC=view_BNHWC,
        )


class MagNet(nn.Module):
    """Magnifying layers, one classifier of the last patches, auxiliary classifiers.

    Args:
        config: all settings of the model.
        fetch_bytes: reads paths and URIs of weights; None: local files are read.
        to_be_loaded: whether a checkpoint will provide all weights, for scoring: then the configured initial weights
            are not read, and nothing is compiled.

    Source: the paper, section 3.
    """

    def __init__(
        self, config: ModelConfig, *, fetch_bytes: FetchBytes | None = None, to_be_loaded: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        zoom, parts = config.zoom, config.classifier
        self.layers = nn.ModuleList(
            MagnifyingLayer(
                zoom.num_nodes[layer],
                zoom.schedule[layer],
                frozen_first=zoom.frozen_patch and layer + 1 == FROZEN_LAYER,
                config=config.locator,
            )
            for layer in range(zoom.num_layers)
        )
        self.encoder = make_encoder(
            parts.encoder,
            weights=parts.weights,
            sha256=parts.weights_sha256,
            trained=parts.train_encoder,
            checkpointing=parts.checkpointing,
            channels_last=parts.channels_last,
            compile=parts.compile and not to_be_loaded,
            fetch=fetch_bytes,
            in_px=zoom.patch_px,
            to_be_loaded=to_be_loaded,
        )
        width = self.encoder.num_features
        self.head = RecurrentHead(width, hidden=parts.hidden) if parts.head == "recurrent" else EvidenceHead(width)
        make_auxiliary = partial(
            make_auxiliary_classifier, config.auxiliary, fetch=fetch_bytes, to_be_loaded=to_be_loaded
        )
        self.early = make_auxiliary(zoom.view_px) if zoom.num_layers > 1 else None
        self.late = make_auxiliary(zoom.out_px(config.late_layer))

    def zoom(
        self, side_px_B: NDArray[np.float64], options: ZoomOptions | None = None
    ) -> Generator[WindowRequest, Windows, ZoomResult]:
        """Zoom into B slides at once.

        Args:
            side_px_B: side of each slide's root square in level-0 pixels.
            options: None: the defaults.

        Yields:
            A `WindowRequest` for each of layers 0 to L, with `len(side_px_B) * num_nodes[layer]` regions, slide by
            slide; several for layer L if the options have a stop criterion.

        Returns:
            The logits and the trace.
        """
        options = options or ZoomOptions()
        records: list[LayerRecord] = []
        values: list[Tensor] = []
        maps: list[tuple[Tensor, Tensor]] = []
        auxiliary: dict[str, Tensor] = {}
        region_BN3 = make_roots(len(side_px_B), self.device)
        for layer, magnify in enumerate(self.layers):
            views = yield from self.look(layer, region_BN3, options)
            auxiliary |= self._auxiliary_logits(layer, views.view_BNCHW)
            small_BNCHW = shrink(views.view_BNCHW, self.config.zoom.map_px)
            tissue_BNHW = find_tissue(small_BNCHW)
            records.append(views.make_record(tissue_BNHW, values[-1] if values else None))
            placed = magnify(small_BNCHW, tissue_BNHW, options.exploration, options.generator)
            values.append(placed.value_BNP.flatten(1))
            # The value loss trains the maps, not the regions at which they are read: hence detached.
            maps.append((placed.map_BNPHW, region_BN3.detach()))
            theta_BNP3 = placed.theta_BNP3 if options.theta_gradient else placed.theta_BNP3.detach()
            out_px = self.config.zoom.out_px(layer + 1)
            region_BN3 = clamp_to_native(compose(region_BN3, theta_BNP3), out_px, side_px_B).flatten(1, 2)
        # In training the losses need all last patches.
        if options.should_stop is not None and not self.training:
            return (yield from self._read_until(options.should_stop, region_BN3, values[-1], records, options))
        patches = yield from self.look(self.config.zoom.num_layers, region_BN3, options)
        auxiliary |= self._auxiliary_logits(self.config.zoom.num_layers, patches.view_BNCHW)
        records.append(patches.make_record(find_tissue(patches.view_BNCHW), values[-1]))
        patch_values = []
        if self.training:  # only the value loss uses them
            patch_values = [
                interpolate_at_patches(map_BNPHW, parent, region_BN3.detach()) for map_BNPHW, parent in maps
            ]
        logits = self.head(self.encode(patches.view_BNCHW))
        return make_result(logits, records, values, patch_values, auxiliary)

    def look(
        self, layer: int, region_BN3: Tensor, options: ZoomOptions
    ) -> Generator[WindowRequest, Windows, LayerViews]:
        """Request the windows of regions and turn them into views.

        Args:
            layer: 0 for the root, L for the last patches; it sets the size of the views.
            region_BN3: regions in root coordinates.
            options: of the zoom.

        Yields:
            One `WindowRequest`.

        Returns:
            The views, sampled from the windows, with grey pixels turned black if the settings say so.
        """
        (b, n), zoom, locator = region_BN3.shape[:2], self.config.zoom, self.config.locator
        out_px = zoom.out_px(layer)
        requested_BN3 = region_BN3.detach().double().cpu().numpy()
        slide_N = np.repeat(np.arange(b), n)
        windows = yield WindowRequest(layer, slide_N, requested_BN3.reshape(-1, 3), out_px, zoom.margin_px)
        pixels_NHWC = torch.from_numpy(windows.pixels).to(self.device, non_blocking=True)
        place_N4 = torch.from_numpy(windows.place).to(self.device)
        region_N3 = region_BN3.flatten(0, 1)
        # The noise of "lms" would make scores random, and without a gradient to the regions it has no use.
        method = locator.sampler if self.training and region_BN3.requires_grad else "bilinear"
        views = [
            sample(
                pixels_NHWC[i : i + SAMPLE_CHUNK].permute(0, 3, 1, 2).float() / 255,
                place_N4[i : i + SAMPLE_CHUNK],
                region_N3[i : i + SAMPLE_CHUNK],
                out_px,
                method=method,
                noise_out_px=locator.sampler_noise,
                generator=options.generator,
            )
            for i in range(0, b * n, SAMPLE_CHUNK)
        ]
        view_NCHW = torch.cat(views)
        if zoom.grey_tolerance is not None:
            view_NCHW = grey_filter(view_NCHW, zoom.grey_tolerance)
        return LayerViews(
            view_BNCHW=view_NCHW.unflatten(0, (b, n)),
            region_BN3=requested_BN3,
            downsample_BN=windows.level.reshape(b, n),
            keep=options.keep_views,
        )

    def encode(self, view_BNCHW: Tensor) -> Tensor:
        """Return the features (B, N, D) of the views that are classified."""
        return self.encoder(view_BNCHW.flatten(0, 1)).unflatten(0, view_BNCHW.shape[:2])

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained parameters in two groups: those of the locators and the rest."""
        # The locators have their own learning rate, and their gradient is clipped separately.
        locators = [p for p in self.layers.parameters() if p.requires_grad]
        ids = {id(p) for p in locators}
        return {"locators": locators, "rest": [p for p in self.parameters() if p.requires_grad and id(p) not in ids]}

    def _read_until(
        self,
        should_stop: Callable[[Tensor], bool],
        region_BN3: Tensor,
        value_BN: Tensor,
        records: Sequence[LayerRecord],
        options: ZoomOptions,
    ) -> Generator[WindowRequest, Windows, ZoomResult]:
        """Read and classify the last patches a few at a time, until the criterion is met or all are read."""
        parts, features = [], []
        chunks = zip(region_BN3.split(PATCHES_PER_READ, 1), value_BN.split(PATCHES_PER_READ, 1), strict=True)
        for chunk_BN3, chunk_value_BN in chunks:
            views = yield from self.look(self.config.zoom.num_layers, chunk_BN3, options)
            parts.append(views.make_record(find_tissue(views.view_BNCHW), chunk_value_BN))
            features.append(self.encode(views.view_BNCHW))
            # The head runs again over all patches so far, which costs little compared with the encoder.
            logits = self.head(torch.cat(features, dim=1))
            if should_stop(logits.running_BN):
                break
        return make_result(logits, [*records, concatenate_nodes(parts)])

    def _auxiliary_logits(self, layer: int, view_BNCHW: Tensor) -> dict[str, Tensor]:
        """Return the logits (B,) of the auxiliary classifiers of this layer by field of the result."""
        logits: dict[str, Tensor] = {}
        if not self.training:
            return logits
        if self.early is not None and layer == self.config.auxiliary.early_layer:
            logits["early_B"] = self.early(view_BNCHW)
        if self.late is not None and layer == self.config.late_layer:
            logits["late_B"] = self.late(view_BNCHW)
        return logits


def make_roots(num_slides: int, device: torch.device) -> Tensor:
    """Return the regions of layer 0, shape (B, 1, 3), float64."""
    # Composed in float32, four layers drift by a hundredth of a pixel of a 110,000 px slide.
    return torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, device=device).expand(num_slides, 1, 3)


def clamp_to_native(region_B3: Tensor, out_px: int, side_px_B: NDArray[np.float64]) -> Tensor:
    """Return regions (B, ..., 3) of which none is finer than the native resolution of its slide.

    Args:
        region_B3: regions in root coordinates.
        out_px: side of their views.
        side_px_B: side of each slide's root square in level-0 pixels.
    """
    return clamp_scale(region_B3, region_B3.new_tensor([native_scale(out_px, side) for side in side_px_B]))


def shrink(view_BNCHW: Tensor, out_px: int) -> Tensor:
    """Reduce the views of nodes to `out_px`, see `magnet.views.area_pool`."""
    return area_pool(view_BNCHW.flatten(0, 1), out_px).unflatten(0, view_BNCHW.shape[:2])


def find_tissue(view_BNCHW: Tensor) -> Tensor:
    """Return a boolean mask (B, N, H, W) of the tissue in the views of nodes, see `magnet.views.tissue_mask`."""
    return tissue_mask(view_BNCHW.flatten(0, 1)).unflatten(0, view_BNCHW.shape[:2])


def make_result(
    logits: SlideLogits,
    records: Sequence[LayerRecord],
    values: Sequence[Tensor] = (),
    patch_values: Sequence[Tensor] = (),
    auxiliary: dict[str, Tensor] | None = None,
) -> ZoomResult:
    """Make the result of a zoom from the logits of its patches and the records of its layers."""
    running_BN = logits.running_BN
    probability_BN = running_BN.detach().double().sigmoid().cpu().numpy()
    return ZoomResult(
        running_BN[:, -1],
        running_BN,
        logits.patch_BN,
        Trace(layers=tuple(records), running_BN=probability_BN),
        value_BN=list(values),
        patch_value_BN=list(patch_values),
        **(auxiliary or {}),
    )
