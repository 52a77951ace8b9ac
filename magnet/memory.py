"""Memory of a training step, measured without a card, without slides and almost without memory.

The very zoom, losses and backward pass of a training run here on tensors that have shapes but no content (torch's
`FakeTensorMode`). Every storage that an operation makes is counted until it is freed, under the name of the module that
was at work, and what was alive at the fullest moment is the prediction. Nothing is estimated by formulas, so that a
change of the model changes the prediction with it.

What the prediction leaves out: the card's own context, workspaces of convolutions, fragmentation, and the optimizer's
temporary copies, which are made when the activations are gone. `magnet.plan.USABLE_SHARE` makes room for them.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # the only way to autocast what has no content
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from magnet.config import ModelConfig, RecipeConfig
from magnet.layer import MagnifyingLayer
from magnet.objective import objective
from magnet.windows import WindowRequest, Windows, drive_many, window_side_px
from magnet.zoom import MagNet, ZoomOptions

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
ENCODER, STACKS, HELPERS, WINDOWS = "encoder", "conv stacks", "auxiliary", "windows, views"
BACKWARD = "backward"
PARTS = (WEIGHTS, GRADIENTS, OPTIMIZER, ENCODER, STACKS, HELPERS, WINDOWS, BACKWARD)
"""Of a peak. The first three stay from step to step; "backward" are gradients of activations."""

SIDE_PX = 100_000.0
"""Of the slides that are zoomed into: large enough for every zoom to be free of native resolution's clamp."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a training step holds at its fullest moment."""

    micro_batch: int
    """Slides of a forward pass."""
    parts: Mapping[str, int]
    """Bytes by the names of `PARTS`."""

    @property
    def peak_bytes(self) -> int:
        """Of all parts."""
        return sum(self.parts.values())


def step_memory(
    config: ModelConfig, recipe: RecipeConfig, micro_batch: int, *, in_flight: int, accumulated: bool
) -> Memory:
    """Predict the peak of a training step.

    Args:
        config: of the model; weights are not read, and nothing is compiled.
        recipe: its precision, losses and gradient to the regions count, as they are at the end of the training, where
            all that is ever on is on.
        micro_batch: slides of a forward pass.
        in_flight: zooms that run at once, while one of them computes its backward pass.
        accumulated: the gradients of an earlier micro-batch are there already.
    """
    model = MagNet(config, to_be_loaded=True).train()
    mode = FakeTensorMode()
    _without_content(model, mode)
    kept = _kept_bytes(model)
    with mode, _NoContent(), _Live(model) as live:
        label_B = torch.zeros(micro_batch)
        if accumulated:
            for parameter in _trained(model):
                parameter.grad = torch.zeros_like(parameter)
                live.move(parameter.grad, GRADIENTS)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            zooms = ((None, _zoom(model, recipe, micro_batch), _no_pixels) for _ in range(in_flight))
            with ThreadPoolExecutor(1) as pool:
                _, zoomed = next(drive_many(zooms, pool, in_flight))
            loss_B, _ = objective(zoomed, label_B, recipe, config.zoom, threshold=0.0)
            with live.during(BACKWARD):
                loss_B.sum().backward()
        parts = kept | live.fullest
    return Memory(micro_batch, {name: parts.get(name, 0) for name in PARTS})


def num_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by part: encoder, head, conv stacks, auxiliary."""
    with torch.device("meta"):
        model = MagNet(config, to_be_loaded=True)
    modules: dict[str, list[nn.Module]] = {ENCODER: [model.encoder], "head": [model.head], STACKS: [model.layers]}
    modules[HELPERS] = _helpers(model)
    return {name: sum(p.numel() for module in those for p in module.parameters()) for name, those in modules.items()}


def _zoom(model: MagNet, recipe: RecipeConfig, num_slides: int) -> Any:
    return model.zoom(
        np.full(num_slides, SIDE_PX),
        ZoomOptions(
            exploration=1.0 if recipe.explore_end else 0.0,
            theta_gradient=recipe.theta_gradient_on(1.0),
            generator=torch.Generator().manual_seed(0),
        ),
    )


def _no_pixels(ask: WindowRequest) -> Windows:
    """Black windows; the operating system gives no memory for zeros that nobody writes to."""
    side, num = window_side_px(ask.out_px, ask.margin_px), len(ask.slide)
    return Windows(pixels=np.zeros((num, side, side, 3), np.uint8), place=np.ones((num, 4)), level=np.ones(num))


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _kept_bytes(model: nn.Module) -> dict[str, int]:
    """What lies on the card from step to step, the gradients apart; Adam keeps two numbers for each weight."""
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return {WEIGHTS: weights, OPTIMIZER: 2 * sum(parameter.nbytes for parameter in _trained(model))}


def _without_content(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by ones of the same shape and memory format that have no content."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = mode.from_tensor(parameter.detach())
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)


class _NoContent(TorchFunctionMode):
    """Answers where a model asks for the content of a tensor that has none: zeros, and no to every question."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.numpy:
            return np.zeros(tuple(args[0].shape), str(args[0].dtype).removeprefix("torch."))
        if func is torch.from_numpy:
            return torch.empty(args[0].shape, dtype=getattr(torch, str(args[0].dtype)))
        if func in (Tensor.__bool__, Tensor.__float__):
            return False
        return func(*args, **(kwargs or {}))


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, by the part of the model that made them.

    Args:
        model: whose modules name the parts.
    """

    def __init__(self, model: MagNet) -> None:
        super().__init__()
        self.fullest: dict[str, int] = {}
        """Bytes by part at the fullest moment."""
        self._bytes: Counter[str] = Counter()
        self._owner: dict[int, list[str]] = {}
        self._total = self._most = 0
        self._part = [WINDOWS]
        for name, modules in _modules_by_part(model).items():
            for module in modules:
                module.register_forward_pre_hook(lambda *_, name=name: self._part.append(name))
                module.register_forward_hook(lambda *_: self._part.pop() and None)
        for tensor in (*model.parameters(), *model.buffers()):
            self._owner[tensor.untyped_storage()._cdata] = [WEIGHTS]  # counted elsewhere
        for parameter in _trained(model):
            parameter.register_post_accumulate_grad_hook(lambda p: self.move(p.grad, GRADIENTS))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Count what is made while the context lasts as of this part, whatever module is at work."""
        before, self._part = self._part, _Always([part])
        yield
        self._part = before

    def move(self, tensor: Tensor | None, part: str) -> None:
        """Count a tensor as of another part from now on."""
        assert tensor is not None
        storage = tensor.untyped_storage()
        owner = self._owner[storage._cdata]
        self._add(owner[0], -storage.nbytes())
        owner[0] = part
        self._add(part, storage.nbytes())

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._owner:
            self._owner[key] = owner = [self._part[-1]]
            self._add(owner[0], storage.nbytes())
            weakref.finalize(storage, self._freed, key, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self._add(self._owner.pop(key)[0], -size)

    def _add(self, part: str, size: int) -> None:
        self._bytes[part] += size
        self._total += size
        if self._total > self._most:
            self._most, self.fullest = self._total, dict(self._bytes)


class _Always(list[str]):
    """A stack whose top stays: modules that are computed again in the backward pass change nothing."""

    def append(self, item: str, /) -> None: ...

    def pop(self, index: Any = -1, /) -> str:
        return self[-1]


def _modules_by_part(model: MagNet) -> dict[str, list[nn.Module]]:
    stacks = [layer.locator for layer in model.layers if isinstance(layer, MagnifyingLayer)]
    return {ENCODER: [model.encoder, model.head], STACKS: [*stacks], HELPERS: _helpers(model)}


def _helpers(model: MagNet) -> list[nn.Module]:
    return [module for module in (model.early, model.late) if module is not None]
