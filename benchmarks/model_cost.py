"""Measures time, parameters and memory of the forward and backward pass of a training step, part by part.

    python benchmarks/model_cost.py [--config configs/paper-3layer.yaml] [--batch 1] [--threads T]
                                    [--device cpu|cuda] [--repeats 3] [--json]

Runs on torch, timm and numpy alone. Slides are formulas, and drawing their windows is not counted. Weights are random.
A whole step (zoom, losses, backward pass) is measured first, with its peak memory; then each part separately, on the
inputs that it had in that step. Times are the fastest of the repeats, after one run that is not counted: wall time on a
GPU, CPU time of all threads on the CPU, which other processes of the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
import yaml  # timm brings it
from torch import Tensor, nn

from magnet.config import ModelConfig, RecipeConfig
from magnet.fake_slide import formula_fetch, waves
from magnet.layer import MagnifyingLayer
from magnet.objective import objective
from magnet.presets import PRESETS
from magnet.stacks import Locator
from magnet.views import area_pool, tissue_mask
from magnet.windows import Fetch, WindowRequest, Windows, drive
from magnet.zoom import MagNet, ZoomOptions, ZoomResult

SIDE_PX = 110_000
SLIDE = waves([(3.0, 5.0), (7.0, 2.0), (11.0, 13.0)])

Leaves = list[Tensor]


def settings_of(path: Path | None) -> tuple[ModelConfig, RecipeConfig]:
    """Return model and recipe of a config file and its preset, with random weights."""
    written = yaml.safe_load(path.read_text()) if path else {}
    random = {"model": {"classifier": {"weights": None}, "auxiliary": {"weights": None}}}
    values = merge(merge(PRESETS[written.get("preset", "evidence")], written), random)
    return build(ModelConfig, values["model"]), build(RecipeConfig, values.get("recipe", {}))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`, also within nested mappings."""
    result = deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def build(kind: type, values: Mapping[str, Any]) -> Any:
    """Build a dataclass and those nested in it from plain values."""
    kinds = get_type_hints(kind)
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return kind(**{name: build(kinds[name], v) if is_dataclass(kinds[name]) else v for name, v in plain.items()})


class FixedMaps(nn.Module):
    """Replaces the conv stacks of a layer: returns the same maps for every view."""

    def __init__(self, map_BNPHW: Tensor) -> None:
        super().__init__()
        self.map_BNPHW = map_BNPHW

    def forward(self, view_BNCHW: Tensor) -> Tensor:
        return self.map_BNPHW


@dataclass
class Clock:
    """Measures the time of calls."""

    device: torch.device
    precision: str
    repeats: int

    def cost(self, forward: Callable[[], Iterable[Tensor]], leaves: Leaves) -> tuple[float, float]:
        """Return the seconds of a forward pass, and of the backward pass from all its outputs to the leaves."""
        seconds: list[tuple[float, float]] = []
        for _ in range(self.repeats + 1):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                outputs, forward_s = self._measure(forward)
            total = [out.float().sum() for out in outputs if out.requires_grad]
            _, backward_s = self._measure(partial(self._backward, total, leaves))
            seconds.append((forward_s, backward_s))
        forwards, backwards = zip(*seconds[1:], strict=True)
        return min(forwards), min(backwards)

    @staticmethod
    def _backward(total: list[Tensor], leaves: Leaves) -> None:
        if total and leaves:
            torch.autograd.grad(total, leaves, allow_unused=True)

    def _measure(self, run: Callable[[], Any]) -> tuple[Any, float]:
        if self.device.type == "cpu":
            began = time.process_time()
            return run(), time.process_time() - began
        torch.cuda.synchronize()
        began = time.perf_counter()
        result = run()
        torch.cuda.synchronize()
        return result, time.perf_counter() - began


class Step:
    """A training step whose windows are recorded in a first run, and the inputs of its parts."""

    def __init__(self, model: MagNet, recipe: RecipeConfig, batch: int) -> None:
        self.model, self.recipe, self.batch = model, recipe, batch
        self.windows: list[Windows] = []
        self.asks: list[WindowRequest] = []
        self.theta_gradient = recipe.theta_gradient_on(0.0)
        self.label_B = (torch.arange(batch) % 2).float().to(model.device)
        self._record(formula_fetch([SLIDE] * batch, [SIDE_PX] * batch))

    def _record(self, fetch: Fetch) -> None:
        def paint(ask: WindowRequest) -> Windows:
            self.asks.append(ask)
            self.windows.append(fetch(ask))
            return self.windows[-1]

        with torch.no_grad():
            self.zoom(paint)

    def zoom(self, fetch: Fetch) -> ZoomResult:
        """The zoom of the step."""
        options = ZoomOptions(
            exploration=self.recipe.exploration(0.0),
            theta_gradient=self.theta_gradient,
            generator=torch.Generator().manual_seed(0),
        )
        return drive(self.model.zoom(torch.full((self.batch,), float(SIDE_PX)).double().numpy(), options), fetch)

    def answer(self, ask: WindowRequest) -> Windows:
        """The windows of the first run. The same seed asks for the same ones."""
        return self.windows[ask.layer]

    def whole(self) -> list[Tensor]:
        """Compute zoom and losses."""
        return [self.losses(self.zoom(self.answer))]

    def losses(self, zoomed: ZoomResult) -> Tensor:
        """Return the loss of the step, with the value loss, which needs a threshold from negative slides."""
        return objective(zoomed, self.label_B, self.recipe, self.model.config.zoom, threshold=0.0)[0].mean()

    def region(self, layer: int) -> Tensor:
        """Return the regions (B, N, 3) of a layer, with gradient where the step has one."""
        region = torch.from_numpy(self.asks[layer].region).to(self.model.device).unflatten(0, (self.batch, -1))
        return region.requires_grad_(self.theta_gradient and layer > 0)

    def look(self, layer: int, region_BN3: Tensor) -> Tensor:
        """Views of a layer from its windows."""
        options = ZoomOptions(generator=torch.Generator().manual_seed(layer))
        looking = self.model.look(layer, region_BN3, options)
        next(looking)
        try:
            looking.send(self.windows[layer])
        except StopIteration as end:
            return end.value.view_BNCHW
        raise AssertionError("a layer asks once")

    def small(self, view_BNCHW: Tensor) -> Tensor:
        """Return the small views I from the views I'."""
        return area_pool(view_BNCHW.flatten(0, 1), self.model.config.zoom.map_px).unflatten(0, view_BNCHW.shape[:2])


class Parts:
    """The parts of a step with their inputs; tensors that a gradient reaches are leaves."""

    def __init__(self, step: Step) -> None:
        self.step, self.model = step, step.model
        self.layers = cast(list[MagnifyingLayer], list(self.model.layers))
        self.explore = step.recipe.exploration(0.0)
        self.regions = [step.region(layer) for layer in range(len(self.layers) + 1)]
        with torch.no_grad():
            self.views = [step.look(layer, region) for layer, region in enumerate(self.regions)]
            self.smalls = [step.small(view) for view in self.views[:-1]]
            self.maps = [layer.locator(small).float() for layer, small in zip(self.layers, self.smalls, strict=True)]
            self.feature_BND = self.encode()[0].unflatten(0, self.views[-1].shape[:2])
            self.zoomed = step.zoom(step.answer)
        for tensor in (*self.views[1:], *self.smalls[1:]):
            tensor.requires_grad_(step.theta_gradient)
        for tensor in (*self.maps, self.feature_BND, *logits_of(self.zoomed)):
            tensor.requires_grad_()
        auxiliary = self.model.config.auxiliary.early_layer, self.model.config.late_layer
        pairs = zip((self.model.early, self.model.late), auxiliary, strict=True)
        self.helpers = [(helper, self.views[layer]) for helper, layer in pairs if helper is not None]

    def all(self) -> dict[str, tuple[Callable[[], Iterable[Tensor]], Leaves]]:
        """Return the forward pass of each part, and the leaves of its backward pass, by name."""
        model, last = self.model, self.views[-1]
        helped = [leaf for helper, view in self.helpers for leaf in (*trainable(helper), *with_gradient(view))]
        return {
            "windows to views": (self.look, with_gradient(*self.regions)),
            "conv stacks": (self.locate, [*trainable(model.layers), *with_gradient(*self.smalls)]),
            "sparsemax, moments": (self.place, self.maps),
            "encoder": (self.encode, [*trainable(model.encoder), *with_gradient(last)]),
            "head": (lambda: [model.head(self.feature_BND).running_BN], [*trainable(model.head), self.feature_BND]),
            "auxiliary classifiers": (lambda: [helper(view) for helper, view in self.helpers], helped),
            "losses": (lambda: [self.step.losses(self.zoomed)], logits_of(self.zoomed)),
        }

    def look(self) -> list[Tensor]:
        """Compute the views of all layers."""
        views = [self.step.look(layer, region) for layer, region in enumerate(self.regions)]
        for view in views[:-1]:
            self.tissue(self.step.small(view))
        return views

    def locate(self) -> list[Tensor]:
        """Compute the maps of all layers."""
        return [layer.locator(small) for layer, small in zip(self.layers, self.smalls, strict=True)]

    def place(self) -> list[Tensor]:
        """Compute the children of all layers from their maps."""
        placed = []
        for layer, small, map_BNPHW in zip(self.layers, self.smalls, self.maps, strict=True):
            locator, layer.locator = layer.locator, cast(Locator, FixedMaps(map_BNPHW))
            children = layer(small, self.tissue(small), self.explore, torch.Generator().manual_seed(0))
            layer.locator = locator
            placed += [children.theta_BNP3, children.value_BNP]
        return placed

    def encode(self) -> list[Tensor]:
        """Compute the features of the last patches."""
        return [self.model.encoder(self.views[-1].flatten(0, 1))]

    @staticmethod
    def tissue(small_BNCHW: Tensor) -> Tensor:
        """Return the tissue masks of small views."""
        return tissue_mask(small_BNCHW.detach().flatten(0, 1)).unflatten(0, small_BNCHW.shape[:2])


def logits_of(zoomed: ZoomResult) -> Leaves:
    """Return the tensors that the losses are computed from."""
    outputs = [zoomed.logit_B, zoomed.patch_BN, zoomed.early_B, zoomed.late_B, *zoomed.value_BN]
    return [tensor for tensor in outputs if tensor is not None]


def with_gradient(*tensors: Tensor) -> Leaves:
    """Return the tensors that require a gradient."""
    return [tensor for tensor in tensors if tensor.requires_grad]


def trainable(module: nn.Module) -> Leaves:
    """Return the parameters that a training changes."""
    return with_gradient(*module.parameters())


def count_parameters(model: MagNet) -> dict[str, int]:
    """Return the number of parameters by part."""
    helpers = nn.ModuleList(m for m in (model.early, model.late) if m is not None)
    parts = {"conv stacks": model.layers, "encoder": model.encoder, "head": model.head}
    parts["auxiliary classifiers"] = helpers
    return {name: sum(p.numel() for p in module.parameters()) for name, module in parts.items()}


def peak_mb(device: torch.device) -> float:
    """Return the peak memory in MiB so far: of the process, or of the allocations on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; return the values by name."""
    device = torch.device(args.device)
    model_config, recipe = settings_of(args.config)
    torch.manual_seed(0)
    model = MagNet(model_config).to(device).train()
    step = Step(model, recipe, args.batch)
    before_mb = peak_mb(device)
    clock = Clock(device, recipe.precision, args.repeats)
    whole = clock.cost(step.whole, trainable(model))
    result: dict[str, Any] = {
        "config": str(args.config or "evidence preset"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": recipe.precision,
        "batch": args.batch,
        "schedule": list(model_config.zoom.schedule),
        "peak_mb": round(peak_mb(device)),
        "peak_before_mb": round(before_mb),
        "parts": {},
    }
    costs = {name: clock.cost(*part) for name, part in Parts(step).all().items()} | {"whole step": whole}
    parameters = count_parameters(model) | {"whole step": sum(p.numel() for p in model.parameters())}
    for name, (forward_s, backward_s) in costs.items():
        times = {"forward_s": round(forward_s, 4), "backward_s": round(backward_s, 4)}
        result["parts"][name] = times | {"parameters": parameters.get(name, 0)}
    return result


def format_table(result: dict[str, Any]) -> str:
    """Return the values as lines of text."""
    head = [f"{key} {value}" for key, value in result.items() if key != "parts"]
    rows = [f"{'part':>22} {'forward s':>10} {'backward s':>10} {'parameters':>12}"]
    rows += [
        f"{name:>22} {part['forward_s']:10.4f} {part['backward_s']:10.4f} {part['parameters']:12,}"
        for name, part in result["parts"].items()
    ]
    return "\n".join([", ".join(head), *rows])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file; without one the evidence preset")
    parser.add_argument("--batch", type=int, default=1, help="slides of a micro-batch (1)")
    parser.add_argument("--threads", type=int, help="number of threads of torch (all cores)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args()
    logging.getLogger("magnet").setLevel(logging.ERROR)  # it warns of random weights, which are meant here
    if args.threads:
        torch.set_num_threads(args.threads)
    result = measure(args)
    print(json.dumps(result) if args.json else format_table(result))


if __name__ == "__main__":
    main()
