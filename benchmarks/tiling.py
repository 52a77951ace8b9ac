"""The usual pipeline on the same slides: the encoder computes all tissue tiles, attention combines them.

Tiles are as large as the last boxes of the MagNet are on average, and have the same size in pixels. The encoder is that
of the trained MagNet, frozen; a gated attention over the features of the tiles is trained on the labels of the slides.
Source: Ilse, Tomczak and Welling, Attention-based deep multiple instance learning, ICML 2018.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from learning import ArmResult, World
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
"""Number of tiles read at once."""
MIN_TISSUE = 0.25
"""Share of tissue on the thumbnail below which a tile is left out."""
EPOCHS, LEARNING_RATE = 30, 1e-3


class GatedAttention(nn.Module):
    """Computes the logit of a slide from the features of its tiles."""

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.tanh, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.weight, self.out = nn.Linear(hidden, 1), nn.Linear(width, 1)

    def forward(self, feature_TD: Tensor) -> Tensor:
        """Return the logit, a scalar."""
        feature_TD = self.norm(feature_TD)
        weight_T1 = self.weight(self.tanh(feature_TD).tanh() * self.gate(feature_TD).sigmoid()).softmax(dim=0)
        return self.out((weight_T1 * feature_TD).sum(dim=0)).squeeze(-1)


def tiling_arm(model: MagNet, world: World, half_sides: Sequence[float], seed: int) -> ArmResult:
    """Compute the features of all tiles, train the attention on them, and score the held-out slides.

    Args:
        model: trained model with the encoder.
        world: the cohort.
        half_sides: half-sides of the last boxes in root coordinates; tiles have their mean.
        seed: seed of the attention's weights and of the order of slides.
    """
    began, result = time.process_time(), ArmResult()
    half_side = float(np.mean(half_sides))
    train = [_features(model, world, slide, half_side) for slide in world.train]
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
            feature_TD = _features(model, world, slide, half_side)
            counts.append(len(feature_TD))
            result.labels.append(int(slide.label or 0))
            result.strata.append(slide.stratum or "")
            result.scores.append(float(head(feature_TD.float())))
    result.patches = float(np.mean(counts))
    return result


@torch.inference_mode()
def _features(model: MagNet, world: World, slide: Slide, half_side: float) -> Tensor:
    """Return the features of all tissue tiles of a slide, (T, D) float16."""
    model.eval()
    batch = world.reader.batch([slide.uri])
    region = tissue_tiles(world.reader, slide.uri, half_side)
    out_px, margin_px = model.config.zoom.patch_px, model.config.zoom.margin_px
    features = []
    for start in range(0, len(region), CHUNK):
        part = region[start : start + CHUNK]
        windows = batch.fetch(WindowRequest(0, np.zeros(len(part), dtype=np.int64), part, out_px, margin_px))
        pixels = torch.from_numpy(windows.pixels).permute(0, 3, 1, 2).float() / 255
        view = sample(pixels, torch.from_numpy(windows.place), torch.from_numpy(part), out_px, method="bilinear")
        features.append(model.encoder(view).half())
    return torch.cat(features)


def tissue_tiles(reader: RegionReader, uri: str, half_side: float) -> NDArray[np.float64]:
    """Return the tissue tiles of a grid over the slide, as regions (T, 3).

    Args:
        reader: reads the thumbnail.
        uri: URI of the slide.
        half_side: half-side of a tile in root coordinates.
    """
    wide, high = reader.info(uri).size_px
    side = half_side * max(wide, high)
    x, y = np.meshgrid(np.arange(0, wide - side + 1, side), np.arange(0, high - side + 1, side))
    box = np.stack([x.ravel(), y.ravel(), np.full(x.size, side)], axis=1)
    image = torch.from_numpy(reader.thumbnail(uri, 1024).copy()).permute(2, 0, 1)[None] / 255
    tissue = tissue_mask(image)[0].double().numpy()
    scale = tissue.shape[1] / wide
    # A summed-area table gives the tissue of every tile without a loop.
    integral = np.pad(tissue.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    left, top = np.floor(box[:, 0] * scale).astype(int), np.floor(box[:, 1] * scale).astype(int)
    right = np.minimum(np.ceil((box[:, 0] + side) * scale).astype(int), tissue.shape[1])
    bottom = np.minimum(np.ceil((box[:, 1] + side) * scale).astype(int), tissue.shape[0])
    inside = integral[bottom, right] - integral[top, right] - integral[bottom, left] + integral[top, left]
    on_tissue = inside / ((right - left) * (bottom - top)) >= MIN_TISSUE
    return from_level0(box[on_tissue] if on_tissue.any() else box, (wide, high))
