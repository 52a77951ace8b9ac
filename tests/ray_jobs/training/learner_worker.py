"""Two optimizer steps as one worker of a group, and their results; test_learner.py runs it in separate processes.

python learner_worker.py RANK NUM_WORKERS STORE OUT
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from magnet.config import AuxiliaryConfig, ClassifierConfig, LocatorConfig, ModelConfig, RecipeConfig, ZoomConfig
from magnet.fake_slide import formula_fetch, waves
from magnet.presets import PRESETS
from magnet.zoom import MagNet
from ray_jobs.training.input.micro_batch import StepInput
from ray_jobs.training.learner import Learner

NUM_STEPS, MICRO_BATCHES, MICRO_BATCH = 2, 3, 2
SIDE_PX = 4096.0


def make_learner(preset: str, num_workers: int = 1, seed: int = 0, **changes: Any) -> Learner:
    """Return a learner of a preset, small enough for a test; `changes` are settings of its classifier or recipe."""
    torch.manual_seed(seed)
    fields = ClassifierConfig.__dataclass_fields__
    classifier = {name: changes.pop(name) for name in list(changes) if name in fields}
    model = PRESETS[preset].get("model", {})
    tiny = {"encoder": "test_resnet"}
    settings = ModelConfig(
        zoom=ZoomConfig(**model.get("zoom", {}) | {"map_px": 12, "view_px": 24, "patch_px": 32, "schedule": (2, 2)}),
        locator=LocatorConfig(**model.get("locator", {}) | {"channels": 2}),
        classifier=ClassifierConfig(**model.get("classifier", {}) | tiny | {"hidden": 8} | classifier),
        auxiliary=AuxiliaryConfig(**tiny | model.get("auxiliary", {})),
    )
    sizes = {"batch": MICRO_BATCHES * MICRO_BATCH, "micro_batch": MICRO_BATCH, "seed": seed}
    options = RecipeConfig(**PRESETS[preset].get("recipe", {}) | sizes | {"learning_rate": 1e-3} | changes)
    return Learner(MagNet(settings, to_be_loaded=not classifier), options, 8, num_workers)


def make_input(step: int, index: int, size: int = MICRO_BATCH) -> StepInput:
    """Return slides that are formulas; the first of each micro-batch is negative."""
    rng = np.random.default_rng([step, index])
    colours = [waves(rng.uniform(-2, 2, (3, 2)).tolist(), rng.uniform(0, 6, 3).tolist()) for _ in range(size)]
    sides = np.full(size, SIDE_PX)
    label_B = torch.arange(size).remainder(2).float()
    return StepInput(index=index, side_px_B=sides, fetch=formula_fetch(colours, sides.tolist()), label_B=label_B)


def take_steps(preset: str, rank: int, num_workers: int) -> dict[str, Any]:
    """Take two steps of a preset, both from the initial weights; return losses, gradients, weights and optimizer state.

    A second step from the weights after the first one could not be compared: Adam makes full steps of gradients that
    are zero except for rounding.
    """
    learner, results = make_learner(preset, num_workers), {}
    initial = deepcopy(learner.model.state_dict())
    gradients: list[dict[str, torch.Tensor]] = []
    named = dict(learner.model.named_parameters())
    learner.optimizer.register_step_pre_hook(
        lambda *_: gradients.append({name: p.grad.clone() for name, p in named.items() if p.grad is not None})
    )
    with ThreadPoolExecutor(2) as pool:
        for step in range(NUM_STEPS):
            learner.model.load_state_dict(initial)
            inputs = [make_input(step, i) for i in range(rank, MICRO_BATCHES, num_workers)]
            results[f"sums {step}"] = learner.step(step, inputs, pool)
            results[f"weights {step}"] = {name: p.detach().clone() for name, p in named.items()}
    buffers = {name: b.clone() for name, b in learner.model.named_buffers() if b.is_floating_point()}
    counts = [float(state["step"]) for state in learner.optimizer.state_dict()["state"].values()]
    threshold = learner.negatives.value.clone()
    return results | {
        "gradients": gradients,
        "buffers": buffers,
        "counts": counts,
        "threshold": threshold,
    }


def main(rank: int, num_workers: int, store: str, out: str) -> None:
    """Run one worker."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_workers)
    torch.save({preset: take_steps(preset, rank, num_workers) for preset in sorted(PRESETS)}, Path(out))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
