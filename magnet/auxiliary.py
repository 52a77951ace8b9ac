"""Auxiliary classifiers: they classify a slide from the views of one layer and are used in training only.

Source: the paper, section 3.3.

Shape letters: B slides, N nodes of a layer, C channels, H W pixels, D features.
"""

from __future__ import annotations

from torch import Tensor, nn

from magnet.config import AuxiliaryConfig
from magnet.encoder import make_encoder
from magnet.heads import MeanHead
from magnet.weights import FetchBytes


def make_auxiliary_classifier(
    config: AuxiliaryConfig, in_px: int, *, fetch: FetchBytes | None, to_be_loaded: bool
) -> nn.Sequential | None:
    """Build a classifier from views (B, N, C, H, W) to slide logits (B,).

    Args:
        config: names the encoder and its weights.
        in_px: side of the views.
        fetch: reads paths and URIs of weights; None: local files are read.
        to_be_loaded: whether a checkpoint will provide the weights; see `magnet.encoder.make_encoder`.

    Returns:
        The classifier; None if the settings name no encoder.
    """
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
    return nn.Sequential(_NodeEncoder(encoder), MeanHead(encoder.num_features))


class _NodeEncoder(nn.Module):
    """Apply an encoder to every node: views (B, N, C, H, W) to features (B, N, D)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, view_BNCHW: Tensor) -> Tensor:
        return self.encoder(view_BNCHW.flatten(0, 1)).unflatten(0, view_BNCHW.shape[:2])
