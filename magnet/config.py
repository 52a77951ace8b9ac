"""Settings of a MagNet and of its training, checked when they are created.

The defaults are those of the paper (preset `paper`); `magnet/presets.py` holds the differences of the other presets.
Numbers that the paper does not give are marked as open. This module needs only the standard library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from typing import ClassVar, Literal

MAX_PATCHES = 4096
"""Largest number of last patches of a schedule: no GPU can hold more."""

FORBID_EXTRA = {"extra": "forbid"}
"""Configuration for pydantic, which reads these classes from YAML, command lines and HTTP: unknown keys are errors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZoomConfig:
    """Settings of the zoom tree: the number of regions, and their size in pixels."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    schedule: tuple[int, ...] = (3, 2, 3)
    """P_l, regions per parent at layer l = 1..L (the order is open in the paper)."""
    map_px: int = 56
    """Side in pixels of I, the input of the conv stacks, and of their maps."""
    view_px: int = 112
    """Side in pixels of I', the view of a node that is not a last patch; a multiple of `map_px`."""
    patch_px: int = 224
    """Side in pixels of the last layer's patches."""
    margin_px: int = 6
    """Window pixels read around each region, for the sampler's slopes: four standard deviations of its noise."""
    frozen_patch: bool = True
    """Whether the first child of every layer-1 region is that region again; no effect with one layer."""
    grey_tolerance: int | None = 15
    """Largest difference between the channels (of 255) of pixels that become black; null: none do."""

    def __post_init__(self) -> None:
        _require(len(self.schedule) >= 1, "schedule", self.schedule, "at least one layer")
        _require(all(1 <= p <= 16 for p in self.schedule), "schedule", self.schedule, "1 to 16 regions per parent")
        _require(
            self.num_patches <= MAX_PATCHES,
            "schedule",
            self.schedule,
            f"at most {MAX_PATCHES} last patches, not {self.num_patches}",
        )
        _require(8 <= self.map_px <= 512, "map_px", self.map_px, "8 to 512 px")
        _require(self.view_px >= self.map_px, "view_px", self.view_px, f"at least map_px ({self.map_px})")
        _require(self.view_px % self.map_px == 0, "view_px", self.view_px, f"a multiple of map_px ({self.map_px})")
        _require(16 <= self.patch_px <= 1024, "patch_px", self.patch_px, "16 to 1024 px")
        _require(0 <= self.margin_px <= 64, "margin_px", self.margin_px, "0 to 64 px")
        tolerance = self.grey_tolerance
        _require(tolerance is None or 0 <= tolerance <= 255, "grey_tolerance", tolerance, "0 to 255, or null")

    @property
    def num_layers(self) -> int:
        """Number of layers below the root, L."""
        return len(self.schedule)

    @property
    def num_nodes(self) -> tuple[int, ...]:
        """Number of nodes of each of the layers 0 (the root) to L."""
        return (1, *accumulate(self.schedule, mul))

    @property
    def num_patches(self) -> int:
        """Number of last patches: the product of the schedule."""
        return math.prod(self.schedule)

    @property
    def num_in_flight(self) -> int:
        """Zooms that run at once so that reading overlaps with computing: one waits at each layer, one computes."""
        return self.num_layers + 2

    def out_px(self, layer: int) -> int:
        """Return the side in pixels of the views of a layer, 0 (the root) to L (the last patches)."""
        return self.view_px if layer < self.num_layers else self.patch_px


@dataclass(frozen=True, kw_only=True, slots=True)
class LocatorConfig:
    """Settings of the locator: from a node's view to its children's regions."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    share_stacks: Literal["node", "slot", "layer"] = "node"
    """Sharing of the conv stacks: one per tree node (paper), one per child slot of a layer, or one per layer."""
    channels: int = 4
    """Channels per kernel size inside a stack (open in the paper)."""
    inner_stride: int = 1
    """Stride of the first layer of a stack; 2 computes the stacks at half resolution."""
    padding: Literal["zeros", "replicate"] = "zeros"
    """Padding of the views in the stacks: zeros, or the pixels of the border."""
    normalise_maps: bool = False
    """Whether each map is scaled to zero mean and unit spread before the temperature; see `magnet.sparsemax`."""
    temperature: float = 1.0
    """Factor that a map is multiplied by before the sparsemax."""
    tissue_mask: bool = False
    """Whether only positions on tissue can be chosen."""
    peak_radius: float | None = None
    """Largest distance from a map's maximum, in half-sides of the view, of the positions that the sparsemax uses;
    null: all positions."""
    inhibit_siblings: bool = False
    """Whether a child cannot choose positions inside an earlier sibling (inhibition of return)."""
    inhibit_radius: float = 0.0
    """Radius around an earlier sibling's centre, in half-sides of the view, that a child cannot choose either: so a
    structure that is larger than a region is not chosen twice."""
    spread: Literal["rms", "l2", "expected"] = "rms"
    """Quantity that becomes the scale (open in the paper): the sparse map's spread per axis, its mean distance from the
    centre, or the expected value of the map under it."""
    scale_clamp: Literal["hard", "straight_through", "softplus"] = "hard"
    """Method that keeps the scale above `scale_min`; "hard" is the paper's max(s, s_min)."""
    scale_min: float = 0.05
    """Smallest half-side of a child in its parent."""
    scale_max: float = 1.0
    """Largest half-side of a child in its parent (the paper has no bound; its moments stay below 0.9)."""
    centre: Literal["tanh", "bounded"] = "tanh"
    """Limit of a child's centre: tanh(mean), or the mean within +-(1 - s), which keeps children inside their parent."""
    sampler: Literal["lms", "bilinear"] = "lms"
    """Sampler of training: linearized multi-sampling, or bilinear; evaluation is always bilinear."""
    sampler_noise: float = 0.5
    """Standard deviation of the auxiliary samples in output pixels."""

    def __post_init__(self) -> None:
        _require(1 <= self.channels <= 256, "channels", self.channels, "1 to 256")
        _require(self.inner_stride in (1, 2), "inner_stride", self.inner_stride, "1 or 2")
        _require(self.temperature > 0, "temperature", self.temperature, "above 0")
        _require(0 < self.scale_min < 1, "scale_min", self.scale_min, "between 0 and 1")
        _require(self.scale_min <= self.scale_max <= 1, "scale_max", self.scale_max, "scale_min to 1")
        _require(self.peak_radius is None or 0 < self.peak_radius <= 2, "peak_radius", self.peak_radius, "0 to 2")
        _require(0 <= self.inhibit_radius <= 2, "inhibit_radius", self.inhibit_radius, "0 to 2")
        _require(self.sampler_noise > 0, "sampler_noise", self.sampler_noise, "above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """Settings of the classifier: from the last patches to the slide's logit."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    encoder: str = "inception_v3"
    """Name of a timm model."""
    weights: str | None = None
    """Initial weights: "imagenet" (timm's own), or a path or URI of a state dict (.safetensors, .pth); null: random,
    with a warning."""
    weights_sha256: str | None = None
    """SHA-256 digest that the file of weights must have; null: not checked."""
    train_encoder: bool = True
    """Whether the encoder is trained; false keeps its weights and its batch statistics as loaded."""
    checkpointing: bool = False
    """Whether the encoder's activations are recomputed in the backward pass: less memory, more time."""
    channels_last: bool = True
    """Whether the encoder runs in the channels-last memory format."""
    compile: bool = False
    """Whether training compiles the encoder by torch.compile, which needs a C++ compiler (on GPUs Triton too) on every
    training node. Scoring never compiles, so that a model runs anywhere."""
    head: Literal["recurrent", "evidence"] = "recurrent"
    """Head: a GRU over the patches (paper), or one logit per patch pooled by log-mean-exp."""
    hidden: int = 512
    """Units of the GRU (open in the paper)."""

    def __post_init__(self) -> None:
        _require(bool(self.encoder), "encoder", self.encoder, "the name of a timm model")
        _require(1 <= self.hidden <= 8192, "hidden", self.hidden, "1 to 8192")


@dataclass(frozen=True, kw_only=True, slots=True)
class AuxiliaryConfig:
    """Settings of the auxiliary classifiers on the views of an early and a late layer.

    Source: the paper, section 3.3.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    encoder: str | None = "resnet18"
    """Name of a timm model; null: no auxiliary classifiers."""
    weights: str | None = None
    """Initial weights; see `ClassifierConfig.weights`."""
    weights_sha256: str | None = None
    """SHA-256 digest that the file of weights must have; null: not checked."""
    early_layer: int = 1
    """Layer of the early classifier's views."""
    late_layer: int = 3
    """Layer of the late classifier's views; the last layer if there are fewer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Settings of a MagNet."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    zoom: ZoomConfig = field(default_factory=ZoomConfig)
    """Settings of the zoom tree."""
    locator: LocatorConfig = field(default_factory=LocatorConfig)
    """Settings of the choice of regions."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Settings of the classification of the last patches."""
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    """Settings of the auxiliary classifiers, which are used in training only."""

    def __post_init__(self) -> None:
        early, late = self.auxiliary.early_layer, self.late_layer
        if self.auxiliary.encoder is None:
            return
        _require(late >= 1, "auxiliary.late_layer", late, "at least 1")
        if self.zoom.num_layers > 1:
            _require(1 <= early < late, "auxiliary.early_layer", early, f"1 to {late - 1}, before the late layer")

    @property
    def late_layer(self) -> int:
        """Layer of the late auxiliary classifier in this tree."""
        return min(self.auxiliary.late_layer, self.zoom.num_layers)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeConfig:
    """Settings of the training of a MagNet."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    epochs: int = 200
    """Number of passes over the training slides."""
    batch: int = 16
    """Number of slides per optimizer step, over all workers (paper: 16 for three layers, 8 for four)."""
    micro_batch: int = 4
    """Number of slides in one forward pass; divides `batch`."""
    learning_rate: float = 3e-5
    """Initial learning rate of Adam, decayed to zero on a cosine."""
    locator_learning_rate: float | None = None
    """Initial learning rate of the conv stacks; null: `learning_rate`."""
    weight_decay: float = 0.0
    """L2 penalty of Adam."""
    clip_norm: float | None = None
    """Largest norm of the gradient, for the locators and for the rest separately; null: no clipping (paper)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the convolutions; sparsemax, moments and sampler are always float32."""
    augment: bool = True
    """Whether slides are mirrored and rotated at random."""
    theta_gradient: Literal["on", "off", "late"] = "on"
    """Whether the classifier's gradient reaches the regions; "late": after the end of exploration."""
    explore_until: float = 0.0
    """Share of the training, 0 to 1, in which every child is placed at random on tissue; 0: none."""
    explore_end: float = 0.0
    """Share of the training, 0 to 1, after which no child is; the probability falls linearly in between."""
    value_weight: float = 0.0
    """Weight of the value loss (evidence preset); 0: off."""
    value_at: Literal["regions", "patches"] = "regions"
    """Positions at which maps are trained on evidence: the centres of their regions, by the best patch below each; or
    the centres of all last patches, on the maps of all layers above them."""
    value_quantile: float = 0.98
    """Quantile of the patch logits of negative slides that a patch must exceed to count as evidence."""
    auxiliary_weight: float = 1.0
    """Weight of each auxiliary cross-entropy (open in the paper)."""
    paradoxical_weight: float = 1.0
    """Weight of the paradoxical loss (open in the paper)."""
    paradoxical_margin: float = 0.0
    """Margin of the paradoxical loss in nats (open in the paper)."""
    seed: int = 0
    """Seed of all random choices: order, frames, exploration, initial weights."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(self.batch >= 1, "batch", self.batch, "at least 1")
        _require(self.micro_batch >= 1, "micro_batch", self.micro_batch, "at least 1")
        _require(self.batch % self.micro_batch == 0, "batch", self.batch, f"a multiple of {self.micro_batch}")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        rate = self.locator_learning_rate
        _require(rate is None or rate > 0, "locator_learning_rate", rate, "above 0, or null")
        until, end = self.explore_until, self.explore_end
        _require(0 <= until <= 1, "explore_until", until, "0 to 1")
        _require(until <= end <= 1, "explore_end", end, f"explore_until ({until}) to 1")
        _require(0 < self.value_quantile < 1, "value_quantile", self.value_quantile, "between 0 and 1")
        for name in ("value_weight", "auxiliary_weight", "paradoxical_weight", "weight_decay"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "above 0, or null")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")

    def exploration(self, progress: float) -> float:
        """Return the probability, 0 to 1, that a child is placed at random.

        Args:
            progress: share of the training that is done, 0 to 1.
        """
        if progress >= self.explore_end:
            return 0.0
        if progress < self.explore_until:
            return 1.0
        return (self.explore_end - progress) / (self.explore_end - self.explore_until)

    def theta_gradient_on(self, progress: float) -> bool:
        """Return whether the classifier's gradient reaches the regions.

        Args:
            progress: share of the training that is done, 0 to 1.
        """
        return self.theta_gradient == "on" or (self.theta_gradient == "late" and progress >= self.explore_end)


def _require(valid: bool, name: str, value: object, allowed: str) -> None:
    """Raise a `ValueError` that names the field, its value and the allowed values, unless the value is valid."""
    if not valid:
        raise ValueError(f"{name} = {value!r}: must be {allowed}")
