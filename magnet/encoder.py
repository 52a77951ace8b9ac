"""Patch encoders: any timm model by name, as a function from views to feature vectors.

Shape letters: N views, C = 3 channels (RGB in [0, 1]), H W pixels, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from difflib import get_close_matches
from functools import partial
from typing import Any

import magnet.torchvision_schemas  # isort: skip  # noqa: F401  must precede timm, see its docstring
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magnet.weights import FetchBytes, is_file_or_uri, load_strictly, read_state_dict

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

logger = logging.getLogger(__name__)


class Encoder(nn.Module):
    """A backbone without its classifier, which normalises its input.

    Args:
        backbone: maps (N, 3, H, W) to (N, D).
        num_features: D.
        mean: mean of each channel, which is subtracted from views in [0, 1].
        std: standard deviation of each channel, by which they are divided.
        trained: False freezes the weights and keeps the backbone in evaluation mode, including its batch statistics;
            the gradient still reaches the views.
        channels_last: whether to run in the channels-last memory format, which is faster for most convolutions.
    """

    mean: Tensor
    """Mean of each channel, shape (1, 3, 1, 1)."""
    std: Tensor
    """Standard deviation of each channel, shape (1, 3, 1, 1)."""

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        trained: bool = True,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.num_features, self.trained = num_features, trained
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone = backbone.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # torch's stubs
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        if not trained:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if not self.trained:
            self.backbone.eval()
        return self

    def forward(self, view_NCHW: Tensor) -> Tensor:
        """Return the features (N, D) of views with values in [0, 1]."""
        normal = (view_NCHW - self.mean) / self.std
        return self.backbone(normal.contiguous(memory_format=self.memory_format))


def make_encoder(
    name: str,
    weights: str | None = None,
    *,
    in_px: int | None = None,
    sha256: str | None = None,
    fetch: FetchBytes | None = None,
    trained: bool = True,
    checkpointing: bool = False,
    channels_last: bool = False,
    compile: bool = False,
    to_be_loaded: bool = False,
) -> Encoder:
    """Build an encoder from a timm model.

    Args:
        name: a timm architecture, such as ``inception_v3`` or ``resnet18``.
        weights: None for random weights; "imagenet" for timm's default or the tag of other weights of timm (both need
            a network or timm's cache); otherwise a path, ``file://`` or other URI of a ``.safetensors`` (preferred) or
            pickled file.
        in_px: side of the views in pixels; needed by architectures of fixed input size (vision transformers), otherwise
            ignored.
        sha256: digest that a file or URI must have.
        fetch: reads paths and URIs of weights; None: local files are read.
        trained: False freezes the encoder; see `Encoder`.
        checkpointing: whether activations are recomputed in the backward pass instead of being kept.
        channels_last: memory format; see `Encoder`.
        compile: whether the backbone runs through torch.compile, which compiles at the first views of each shape and
            mode and needs a C++ compiler, on GPUs Triton too. The names of the weights stay the same.
        to_be_loaded: whether a checkpoint will provide the weights: then `weights` are not read, and random weights
            cause no warning.

    Raises:
        ValueError: unknown architecture or tag, wrong digest, or weights that do not fit the architecture.
        OSError: weights not found, or timm's weights unreachable.
    """
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(f"encoder {name!r}: timm has no such model; similar names: {', '.join(close) or 'none'}")
    from_timm = weights is not None and not is_file_or_uri(weights)
    # The tag matters even if a checkpoint provides the weights: it decides how the input is normalised.
    backbone = _create(name, weights if from_timm else None, in_px, pretrained=from_timm and not to_be_loaded)
    if weights is None and not to_be_loaded:
        logger.warning("encoder %s: random initialisation, because no weights are given", name)
    elif weights is not None and not from_timm and not to_be_loaded:
        state = read_state_dict(weights, sha256=sha256, fetch=fetch)
        load_strictly(backbone, state, ignore=classifier_names(backbone), source=weights)
    if checkpointing:
        _checkpoint(backbone)
    if compile:
        backbone.compile()
    return Encoder(
        backbone,
        backbone.num_features,
        mean=backbone.pretrained_cfg.get("mean", IMAGENET_MEAN),
        std=backbone.pretrained_cfg.get("std", IMAGENET_STD),
        trained=trained,
        channels_last=channels_last,
    )


def _create(name: str, tag: str | None, in_px: int | None, *, pretrained: bool) -> Any:
    """Create a timm model without classifier, configured for the weights `tag` (None, "imagenet": the default ones)."""
    published = timm.get_pretrained_cfg(name)
    fixed = published is not None and published.fixed_input_size
    options: dict[str, Any] = {"img_size": in_px} if fixed and in_px is not None else {}
    full_name = name if tag in (None, "imagenet") else f"{name}.{tag}"
    try:
        return timm.create_model(full_name, pretrained=pretrained, num_classes=0, **options)
    except OSError as error:
        raise OSError(
            f"encoder {name}: timm's weights {tag!r} are not in its cache and cannot be downloaded ({error}); "
            "without a network give a path or URI of a weights file instead"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"encoder {name}: timm has no weights {tag!r} for it ({error})") from error


def classifier_names(backbone: Any) -> set[str]:
    """Return the modules of published weights that an encoder lacks: the classifier and Inception's auxiliary one."""
    names = backbone.pretrained_cfg.get("classifier") or ()  # timm gives one name or several
    return {names, "AuxLogits"} if isinstance(names, str) else {*names, "AuxLogits"}


def _checkpoint(backbone: Any) -> None:
    """Turn on activation checkpointing of the backbone's blocks.

    timm's own switch is used only for backbones without batch normalisation: it runs blocks twice, and they would
    count each batch twice in their running statistics.
    """
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.modules()):
        for block in _blocks(backbone):
            # not a wrapping module, which would rename the weights; a partial, so that copies and pickles work
            block.forward = partial(_recompute, block)
    else:
        backbone.set_grad_checkpointing(True)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest modules below containers; to recompute single operations would save little memory."""
    for child in module.children():
        if isinstance(child, nn.Sequential):
            yield from _blocks(child)
        elif any(True for _ in child.children()):
            yield child


def _recompute(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run the block's own forward pass without keeping its activations."""
    forward = partial(type(block).forward, block)
    # The compiler functionalises the statistics itself and does not support contexts.
    if torch.compiler.is_compiling():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, block), **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the forward pass and of its repetition."""
    return nullcontext(), _keep_statistics(block)


@contextmanager
def _keep_statistics(block: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch normalisation, which otherwise works as in training."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    previous = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, previous, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
