"""Prediction of the memory of a training step, without a GPU, without slides and almost without memory.

The same zoom, losses and backward pass as in training run here on tensors that have shapes but no content (torch's
`FakeTensorMode`). Every storage that an operation creates is counted until it is freed, under the name of the module
that created it; the bytes that are alive at the peak are the prediction. Nothing is estimated by formulas, so that a
change of the model changes the prediction too.

The prediction does not include the GPU's own context, workspaces of convolutions, fragmentation, and the optimizer's
temporary copies, which are made after the activations are freed. `magnet.plan.USABLE_SHARE` leaves room for them.

Shape letters: B slides.
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
from torch._subclasses.fake_tensor import FakeTensorMode  # only this mode autocasts tensors without content
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from magnet.config import ModelConfig, RecipeConfig
from magnet.layer import MagnifyingLayer
from magnet.objective import objective
from magnet.windows import WindowRequest, Windows, drive_many, window_side_px
from magnet.zoom import MagNet, ZoomOptions

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
ENCODER, STACKS, AUXILIARY, WINDOWS = "encoder", "conv stacks", "auxiliary", "windows, views"
BACKWARD = "backward"
PARTS = (WEIGHTS, GRADIENTS, OPTIMIZER, ENCODER, STACKS, AUXILIARY, WINDOWS, BACKWARD)
"""Parts of a peak. The first three stay from step to step; "backward" are gradients of activations."""

SIDE_PX = 100_000.0
"""Side of the slides' root squares: so large that no region is limited by native resolution."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Memory of a training step at its peak."""

    micro_batch: int
    """Number of slides of a forward pass."""
    parts: Mapping[str, int]
    """Bytes by part; the names are those of `PARTS`."""

    @property
    def peak_bytes(self) -> int:
        """Bytes of all parts together."""
        return sum(self.parts.values())


def predict_step_memory(
    config: ModelConfig, recipe: RecipeConfig, micro_batch: int, *, in_flight: int, accumulated: bool
) -> StepMemory:
    """Predict the peak memory of a training step.

    Args:
        config: settings of the model; weights are not read, and nothing is compiled.
        recipe: settings of the training. Losses and gradients count as at its end, when all that is ever switched on
            is on.
        micro_batch: number of slides of a forward pass.
        in_flight: number of zooms that run at once, while one of them computes its backward pass.
        accumulated: whether the gradients of an earlier micro-batch exist already.
    """
    model = MagNet(config, to_be_loaded=True).train()
    mode = FakeTensorMode()
    _remove_content(model, mode)
    permanent = _permanent_bytes(model)
    with mode, _NoContent(), _StorageCounter(model) as counter:
        label_B = torch.zeros(micro_batch)
        if accumulated:
            for parameter in _trained_parameters(model):
                parameter.grad = torch.zeros_like(parameter)
                counter.move(parameter.grad, GRADIENTS)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            zooms = ((None, _zoom(model, recipe, micro_batch), _no_pixels) for _ in range(in_flight))
            with ThreadPoolExecutor(1) as pool:
                _, zoomed = next(drive_many(zooms, pool, in_flight))
            loss_B, _ = objective(zoomed, label_B, recipe, config.zoom, threshold=0.0)
            with counter.attribute_to(BACKWARD):
                loss_B.sum().backward()
        parts = permanent | counter.peak
    return StepMemory(micro_batch, {name: parts.get(name, 0) for name in PARTS})


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Count the parameters by part: encoder, head, conv stacks, auxiliary."""
    with torch.device("meta"):
        model = MagNet(config, to_be_loaded=True)
    parts: dict[str, list[nn.Module]] = {ENCODER: [model.encoder], "head": [model.head], STACKS: [model.layers]}
    parts[AUXILIARY] = _auxiliary_modules(model)
    return {name: sum(p.numel() for module in modules for p in module.parameters()) for name, modules in parts.items()}


def _zoom(model: MagNet, recipe: RecipeConfig, num_slides: int) -> Any:
    """Return a zoom as at the end of the training, with exploration if the training has any."""
    return model.zoom(
        np.full(num_slides, SIDE_PX),
        ZoomOptions(
            exploration=1.0 if recipe.explore_end else 0.0,
            theta_gradient=recipe.theta_gradient_on(1.0),
            generator=torch.Generator().manual_seed(0),
        ),
    )


def _no_pixels(request: WindowRequest) -> Windows:
    """Return black windows; the operating system allocates no memory for zeros that are never written to."""
    side, num = window_side_px(request.out_px, request.margin_px), len(request.slide)
    return Windows(pixels=np.zeros((num, side, side, 3), np.uint8), place=np.ones((num, 4)), level=np.ones(num))


def _trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that the optimizer updates."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _permanent_bytes(model: nn.Module) -> dict[str, int]:
    """Return the bytes that stay on the GPU from step to step, except for the gradients."""
    # Adam keeps two numbers for each trained weight.
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return {WEIGHTS: weights, OPTIMIZER: 2 * sum(parameter.nbytes for parameter in _trained_parameters(model))}


def _remove_content(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by tensors of the same shape and memory format that have no content."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = mode.from_tensor(parameter.detach())
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)


class _NoContent(TorchFunctionMode):
    """Answers operations that need the content of a tensor without content: by zeros, and by False for conditions."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.numpy:
            return np.zeros(tuple(args[0].shape), str(args[0].dtype).removeprefix("torch."))
        if func is torch.from_numpy:
            return torch.empty(args[0].shape, dtype=getattr(torch, str(args[0].dtype)))
        # False skips the Newton steps of sparsemax, whose number depends on the content.
        if func in (Tensor.__bool__, Tensor.__float__):
            return False
        return func(*args, **(kwargs or {}))


class _StorageCounter(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, by the part of the model that created them.

    Args:
        model: its modules determine the parts.
    """

    def __init__(self, model: MagNet) -> None:
        super().__init__()
        self.peak: dict[str, int] = {}
        """Bytes by part at the peak."""
        self._bytes: Counter[str] = Counter()
        self._owner: dict[int, list[str]] = {}  # part by storage, in a list of one because `move` changes it
        self._total = self._peak_total = 0
        self._part = [WINDOWS]  # a stack of the parts whose modules are running
        for name, modules in _modules_by_part(model).items():
            for module in modules:
                module.register_forward_pre_hook(lambda *_, name=name: self._part.append(name))
                module.register_forward_hook(lambda *_: self._part.pop() and None)
        for tensor in (*model.parameters(), *model.buffers()):
            self._owner[tensor.untyped_storage()._cdata] = [WEIGHTS]  # counted by _permanent_bytes
        for parameter in _trained_parameters(model):
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
    def attribute_to(self, part: str) -> Iterator[None]:
        """Count all storages that are created within the context under this part."""
        previous, self._part = self._part, _ConstantStack([part])
        yield
        self._part = previous

    def move(self, tensor: Tensor | None, part: str) -> None:
        """Count a tensor under another part from now on."""
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
            weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._add(self._owner.pop(key)[0], -size)

    def _add(self, part: str, size: int) -> None:
        self._bytes[part] += size
        self._total += size
        if self._total > self._peak_total:
            self._peak_total, self.peak = self._total, dict(self._bytes)


class _ConstantStack(list[str]):
    """A stack that stays as it is: modules that are recomputed in the backward pass do not change the part."""

    def append(self, item: str, /) -> None: ...

    def pop(self, index: Any = -1, /) -> str:
        return self[-1]


def _modules_by_part(model: MagNet) -> dict[str, list[nn.Module]]:
    """Return the modules whose storages are counted under each part."""
    stacks = [layer.locator for layer in model.layers if isinstance(layer, MagnifyingLayer)]
    return {ENCODER: [model.encoder, model.head], STACKS: [*stacks], AUXILIARY: _auxiliary_modules(model)}


def _auxiliary_modules(model: MagNet) -> list[nn.Module]:
    """Return the auxiliary classifiers that the model has."""
    return [module for module in (model.early, model.late) if module is not None]
