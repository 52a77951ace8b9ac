"""The MagNet: a zoom through a pyramid, told as a conversation.

`MagNet.zoom` is a generator. It yields the regions that it wants to see next (`WindowRequest`), is sent their windows,
layer after layer, and returns logits and trace. Training, scoring and tests all run it; pictures are drawn from the
trace of the same pass that scored.

Shape letters: B slides, N nodes of a layer, P children per parent, C channels, H W pixels, D features, 3 (s, tx, ty).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from magnet.affine import clamp_native, compose
from magnet.config import AuxiliaryConfig, ModelConfig
from magnet.encoder import make_encoder
from magnet.evidence import value_at_patches
from magnet.heads import EvidenceHead, MeanHead, RecurrentHead
from magnet.layer import MagnifyingLayer
from magnet.regions import native_scale
from magnet.sampler import sample
from magnet.views import area_pool, grey_filter, tissue_mask
from magnet.weights import FetchBytes
from magnet.windows import WindowRequest, Windows

FROZEN_LAYER = 2
"""Whose regions have the frozen patch among them. Source: the paper, section 4.3."""

SAMPLE_CHUNK = 64
"""Windows that are widened to float at once: bounds the memory of sampling many patches."""

AT_ONCE = 4
"""Last patches that a zoom which may end early reads before it asks whether it may."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What a zoom leaves behind for pictures, tables and checks. Layers 0 (the root) to L; numpy, on the CPU."""

    regions: list[NDArray[np.float64]] = field(default_factory=list)
    """Per layer (B, N, 3), in root coordinates."""
    levels: list[NDArray[np.float64]] = field(default_factory=list)
    """Per layer (B, N): level-0 pixels per pixel of the window read."""
    tissue: list[NDArray[np.float32]] = field(default_factory=list)
    """Per layer (B, N): share of each view that shows tissue."""
    values: list[NDArray[np.float32]] = field(default_factory=list)
    """Per layer 1 to L (B, N): the locator's value at each region's centre."""
    views: list[NDArray[np.uint8]] = field(default_factory=list)
    """Per layer (B, N, H, W, 3): what the model saw; only if it was asked to keep them."""
    running: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    """(B, N): the slide's probability after each last patch that was read."""


@dataclass(frozen=True, slots=True)
class Zoomed:
    """The end of a zoom."""

    logit_B: Tensor
    """The slide's logit."""
    running_BN: Tensor
    """Its logit after each last patch."""
    patch_BN: Tensor | None
    """Logit of each last patch by itself (evidence head)."""
    trace: Trace
    value_BN: list[Tensor] = field(default_factory=list)
    """Per layer 1 to L (B, N): the locator's value of each region."""
    patch_value_BN: list[Tensor] = field(default_factory=list)
    """Per layer 1 to L (B, last patches): its value at each last patch below (in training)."""
    early_B: Tensor | None = None
    """Logit of the auxiliary classifier on the early layer's views (in training)."""
    late_B: Tensor | None = None
    """Logit of the one on the late layer's (in training)."""


class MagNet(nn.Module):
    """Magnifying layers, one classification layer, auxiliary classifiers.

    Args:
        config: all settings.
        fetch_bytes: reads paths and URIs of weights; None: local ones are read here.
        to_be_loaded: a checkpoint will bring all weights, to score with: the configured initial ones are not read, and
            nothing is compiled.

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
        auxiliary = partial(_auxiliary, config.auxiliary, fetch=fetch_bytes, to_be_loaded=to_be_loaded)
        self.early = auxiliary(zoom.view_px) if zoom.num_layers > 1 else None
        self.late = auxiliary(zoom.patch_px if config.late_layer == zoom.num_layers else zoom.view_px)

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
        """Zoom into B slides at once.

        Args:
            side_px_B: side of each slide's root square in level-0 pixels.
            explore: probability that a region is placed at random on tissue.
            theta_gradient: whether gradients reach the regions through the sampler.
            generator: of exploration and of the sampler's noise; on the CPU.
            keep_views: keep what the model saw in the trace.
            enough: in evaluation: the last patches are asked for and encoded a few at a time, in order, until this
                says so of the running logit (B, N so far); those left are not in the trace.

        Yields:
            `WindowRequest` for layers 0 to L, with `len(side_px_B) * num_nodes[layer]` regions, slide by slide; several
            for layer L where `enough` is given.

        Returns:
            `Zoomed`.
        """
        zoom, trace, values, above = self.config.zoom, Trace(), [], []
        early_B = late_B = None
        region_BN3 = roots(len(side_px_B), self.device)
        for layer, magnify in enumerate(self.layers):
            view_BNCHW = yield from self._look(layer, region_BN3, zoom.view_px, generator, trace, keep_views)
            if self.training:
                early_B, late_B = self._auxiliary_logits(layer, view_BNCHW, early_B, late_B)
            small_BNCHW = area_pool(view_BNCHW.flatten(0, 1), zoom.map_px).unflatten(0, view_BNCHW.shape[:2])
            tissue_BNHW = tissue_mask(small_BNCHW.flatten(0, 1)).unflatten(0, view_BNCHW.shape[:2])
            trace.tissue.append(_shares(tissue_BNHW))
            placed = magnify(small_BNCHW, tissue_BNHW, explore, generator)
            above.append((placed.map_BNPHW, region_BN3.detach()))
            theta_BNP3 = placed.theta_BNP3 if theta_gradient else placed.theta_BNP3.detach()
            out_px = zoom.view_px if layer + 1 < zoom.num_layers else zoom.patch_px
            region_BN3 = self._children(region_BN3, theta_BNP3, out_px, side_px_B)
            values.append(placed.value_BNP.flatten(1))
            trace.values.append(values[-1].detach().float().cpu().numpy())
        if enough is not None and not self.training:
            return (yield from self._until(enough, region_BN3, trace, keep_views))
        patch_BNCHW = yield from self._look(zoom.num_layers, region_BN3, zoom.patch_px, generator, trace, keep_views)
        if self.training:
            early_B, late_B = self._auxiliary_logits(zoom.num_layers, patch_BNCHW, early_B, late_B)
        trace.tissue.append(_shares(tissue_mask(patch_BNCHW.flatten(0, 1)).unflatten(0, patch_BNCHW.shape[:2])))
        at_patches = [value_at_patches(*pair, region_BN3.detach()) for pair in above] if self.training else []
        zoomed = self._classified(patch_BNCHW, trace)
        return replace(zoomed, value_BN=values, patch_value_BN=at_patches, early_B=early_B, late_B=late_B)

    def _classified(self, patch_BNCHW: Tensor, trace: Trace) -> Zoomed:
        """The end of a zoom, from its last patches."""
        feature_BND = self.encoder(patch_BNCHW.flatten(0, 1)).unflatten(0, patch_BNCHW.shape[:2])
        return _ended(*self._logits(feature_BND), trace)

    def _until(
        self, enough: Callable[[Tensor], bool], region_BN3: Tensor, trace: Trace, keep_views: bool
    ) -> Generator[WindowRequest, Windows, Zoomed]:
        """The end of a zoom that reads its last patches a few at a time."""
        zoom, seen, features = self.config.zoom, Trace(), []
        for part_BN3 in region_BN3.split(AT_ONCE, dim=1):
            patch_BNCHW = yield from self._look(zoom.num_layers, part_BN3, zoom.patch_px, None, seen, keep_views)
            seen.tissue.append(_shares(tissue_mask(patch_BNCHW.flatten(0, 1)).unflatten(0, patch_BNCHW.shape[:2])))
            features.append(self.encoder(patch_BNCHW.flatten(0, 1)).unflatten(0, patch_BNCHW.shape[:2]))
            running_BN, patch_BN = self._logits(torch.cat(features, dim=1))
            if enough(running_BN):
                break
        trace.regions.append(np.concatenate(seen.regions, axis=1))
        trace.levels.append(np.concatenate(seen.levels, axis=1))
        trace.tissue.append(np.concatenate(seen.tissue, axis=1))
        if keep_views:
            trace.views.append(np.concatenate(seen.views, axis=1))
        return _ended(running_BN, patch_BN, trace)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that are trained, the locators' apart from the rest."""
        locators = [p for p in self.layers.parameters() if p.requires_grad]
        seen = {id(p) for p in locators}
        return {"locators": locators, "rest": [p for p in self.parameters() if p.requires_grad and id(p) not in seen]}

    def _look(
        self,
        layer: int,
        region_BN3: Tensor,
        out_px: int,
        generator: torch.Generator | None,
        trace: Trace,
        keep_views: bool,
    ) -> Generator[WindowRequest, Windows, Tensor]:
        """Views (B, N, C, H, W) in [0, 1] of regions: ask for their windows, sample them, drop grey pixels."""
        (b, n), zoom = region_BN3.shape[:2], self.config.zoom
        where_BN3 = region_BN3.detach().double().cpu().numpy()
        slide_N = np.repeat(np.arange(b), n)
        windows = yield WindowRequest(layer, slide_N, where_BN3.reshape(-1, 3), out_px, zoom.margin_px)
        pixels_NHWC = torch.from_numpy(windows.pixels).to(self.device, non_blocking=True)
        place_N4 = torch.from_numpy(windows.place).to(self.device)
        method = self.config.locator.sampler if self.training and region_BN3.requires_grad else "bilinear"
        views = [
            sample(
                pixels_NHWC[i : i + SAMPLE_CHUNK].permute(0, 3, 1, 2).float() / 255,
                place_N4[i : i + SAMPLE_CHUNK],
                region_BN3.flatten(0, 1)[i : i + SAMPLE_CHUNK],
                out_px,
                method=method,
                noise_out_px=self.config.locator.sampler_noise,
                generator=generator,
            )
            for i in range(0, b * n, SAMPLE_CHUNK)
        ]
        view_NCHW = torch.cat(views)
        if zoom.grey_tolerance is not None:
            view_NCHW = grey_filter(view_NCHW, zoom.grey_tolerance)
        trace.regions.append(where_BN3)
        trace.levels.append(windows.level.reshape(b, n))
        if keep_views:
            seen = (view_NCHW.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
            trace.views.append(seen.unflatten(0, (b, n)).cpu().numpy())
        return view_NCHW.unflatten(0, (b, n))

    def _children(self, parent_BN3: Tensor, theta_BNP3: Tensor, out_px: int, side_px_B: NDArray[np.float64]) -> Tensor:
        """Composed regions of all children, none finer than native resolution; (B, N * P, 3)."""
        finest = [native_scale(out_px, side) for side in side_px_B]
        child_BNP3 = compose(parent_BN3, theta_BNP3)
        return clamp_native(child_BNP3, child_BNP3.new_tensor(finest)).flatten(1, 2)

    def _logits(self, feature_BND: Tensor) -> tuple[Tensor, Tensor | None]:
        """The slide's logit after each patch, and each patch's own where the head has one; (B, N)."""
        if isinstance(self.head, EvidenceHead):
            evidence = self.head(feature_BND)
            return evidence.running, evidence.patch
        return self.head(feature_BND), None

    def _auxiliary_logits(
        self, layer: int, view_BNCHW: Tensor, early_B: Tensor | None, late_B: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if self.early is not None and layer == self.config.auxiliary.early_layer:
            early_B = self.early(view_BNCHW)
        if self.late is not None and layer == self.config.late_layer:
            late_B = self.late(view_BNCHW)
        return early_B, late_B


def _auxiliary(
    config: AuxiliaryConfig, in_px: int, *, fetch: FetchBytes | None, to_be_loaded: bool
) -> nn.Sequential | None:
    """A slide's logit (B,) from the views (B, N, C, H, W) of one layer. Source: the paper, section 3.3."""
    if config.encoder is None:
        return None
    encoder = make_encoder(
        config.encoder,
        config.weights,
        in_px=in_px,
        sha256=config.weights_sha256,
        fetch=fetch,
        to_be_loaded=to_be_loaded,
    )
    return nn.Sequential(_OverNodes(encoder), MeanHead(encoder.num_features))


class _OverNodes(nn.Module):
    """Features (B, N, D) of views (B, N, C, H, W)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, view_BNCHW: Tensor) -> Tensor:
        return self.encoder(view_BNCHW.flatten(0, 1)).unflatten(0, view_BNCHW.shape[:2])


def _ended(running_BN: Tensor, patch_BN: Tensor | None, trace: Trace) -> Zoomed:
    probability_BN = running_BN.detach().double().sigmoid().cpu().numpy()
    return Zoomed(running_BN[:, -1], running_BN, patch_BN, replace(trace, running=probability_BN))


def _shares(mask_BNHW: Tensor) -> NDArray[np.float32]:
    return mask_BNHW.float().mean(dim=(-2, -1)).cpu().numpy()


def roots(num_slides: int, device: torch.device) -> Tensor:
    """The regions of layer 0, (B, 1, 3)."""
    # In float64: composed in float32, four layers drift by a hundredth of a pixel of a 110,000 px slide.
    return torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, device=device).expand(num_slides, 1, 3)
