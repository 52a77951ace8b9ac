"""The usual pipeline on the same slides: every tissue tile through the encoder, attention over the tiles.

Tiles are as large as the MagNet's last boxes are on average and seen at the same size in pixels; the encoder is the
trained MagNet's, frozen; a gated attention over the tiles' features is trained on the slides' labels.
Source: Ilse, Tomczak and Welling, Attention-based deep multiple instance learning, ICML 2018.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from learning import Judged, World
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from magnet.regions import from_level0
from magnet.sampler import sample
from magnet.views import tissue_mask
from magnet.windows import WindowRequest
from magnet.zoom import MagNet
from service.cohort.manifest import Slide
from service.slides.reader import RegionReader

CHUNK = 128
"""Tiles read at once."""
MIN_TISSUE = 0.25
"""Tiles with less tissue on the thumbnail are left out."""
EPOCHS, LEARNING_RATE = 30, 1e-3


class GatedAttention(nn.Module):
    """A slide's logit from the features of its tiles."""

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.tanh, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.weight, self.out = nn.Linear(hidden, 1), nn.Linear(width, 1)

    def forward(self, feature_TD: Tensor) -> Tensor:
        """Logit, a scalar."""
        feature_TD = self.norm(feature_TD)
        weight_T1 = self.weight(self.tanh(feature_TD).tanh() * self.gate(feature_TD).sigmoid()).softmax(dim=0)
        return self.out((weight_T1 * feature_TD).sum(dim=0)).squeeze(-1)


def tiling_arm(model: MagNet, world: World, tile_l0: Sequence[float], seed: int) -> Judged:
    """Features of all tiles of all slides, then the attention.

    Args:
        model: trained; gives the encoder.
        world: the cohort.
        tile_l0: side of the tiles as a share of the root square's half.
        seed: of the attention's weights and order.
    """
    began, result = time.process_time(), Judged()
    side = float(np.mean(tile_l0))
    train = [_features(model, world, slide, side) for slide in world.train]
    torch.manual_seed(seed)
    head = GatedAttention(train[0].shape[1])
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    label = torch.tensor([float(slide.label or 0) for slide in world.train])
    for _ in range(EPOCHS):
        for n in torch.randperm(len(train)).tolist():
            functional.binary_cross_entropy_with_logits(head(train[n].float()), label[n]).backward()
            optimizer.step()
            optimizer.zero_grad()
    result.cpu_s = time.process_time() - began
    counts = []
    with torch.inference_mode():
        for slide in world.test:
            feature_TD = _features(model, world, slide, side)
            counts.append(len(feature_TD))
            result.labels.append(int(slide.label or 0))
            result.strata.append(slide.stratum or "")
            result.scores.append(float(head(feature_TD.float())))
    result.patches = float(np.mean(counts))
    return result


@torch.inference_mode()
def _features(model: MagNet, world: World, slide: Slide, half_side: float) -> Tensor:
    """(T, D) float16, a row per tissue tile."""
    model.eval()
    batch = world.reader.batch([slide.uri])
    region = tissue_tiles(world.reader, slide.uri, half_side)
    out_px, margin_px = model.config.zoom.patch_px, model.config.zoom.margin_px
    found = []
    for start in range(0, len(region), CHUNK):
        part = region[start : start + CHUNK]
        windows = batch.fetch(WindowRequest(0, np.zeros(len(part), dtype=np.int64), part, out_px, margin_px))
        pixels = torch.from_numpy(windows.pixels).permute(0, 3, 1, 2).float() / 255
        view = sample(pixels, torch.from_numpy(windows.place), torch.from_numpy(part), out_px, method="bilinear")
        found.append(model.encoder(view).half())
    return torch.cat(found)


def tissue_tiles(reader: RegionReader, uri: str, half_side: float) -> NDArray[np.float64]:
    """(T, 3) regions of a grid over the slide, those on tissue."""
    wide, high = reader.info(uri).size_px
    side = half_side * max(wide, high)
    x, y = np.meshgrid(np.arange(0, wide - side + 1, side), np.arange(0, high - side + 1, side))
    box = np.stack([x.ravel(), y.ravel(), np.full(x.size, side)], axis=1)
    image = torch.from_numpy(reader.thumbnail(uri, 1024).copy()).permute(2, 0, 1)[None] / 255
    tissue = tissue_mask(image)[0].double().numpy()
    scale = tissue.shape[1] / wide
    integral = np.pad(tissue.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    left, top = np.floor(box[:, 0] * scale).astype(int), np.floor(box[:, 1] * scale).astype(int)
    right = np.minimum(np.ceil((box[:, 0] + side) * scale).astype(int), tissue.shape[1])
    bottom = np.minimum(np.ceil((box[:, 1] + side) * scale).astype(int), tissue.shape[0])
    inside = integral[bottom, right] - integral[top, right] - integral[bottom, left] + integral[top, left]
    chosen = inside / ((right - left) * (bottom - top)) >= MIN_TISSUE
    return from_level0(box[chosen] if chosen.any() else box, (wide, high))
