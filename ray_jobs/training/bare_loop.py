"""A training without Ray, MLflow or checkpoints: the same order, learner and reader in one loop.

For benchmarks, which measure the training service against it, and for tests and notebooks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from magnet.config import RecipeConfig
from magnet.windows import Fetch, WindowRequest, Windows, in_frames
from magnet.zoom import MagNet
from ray_jobs.training.learner import Learner
from ray_jobs.training.order import Order
from service.cohort.manifest import Slide
from service.slides.reader_protocol import Batch, Reader

AfterStep = Callable[[int, dict[str, float]], None]
"""Is called with the number of steps done and the last step's sums."""


def train(
    model: MagNet,
    recipe: RecipeConfig,
    slides: Sequence[Slide],
    reader: Reader,
    num_steps: int,
    after_step: AfterStep | None = None,
) -> Learner:
    """Train for a number of steps, whatever `recipe.epochs` says; learning rate and exploration follow them.

    Args:
        model: is changed.
        recipe: how.
        slides: labelled.
        reader: of their regions.
        num_steps: optimizer steps.
        after_step: told of each.
    """
    order = Order(
        num_slides=len(slides),
        batch=recipe.batch,
        micro_batch=recipe.micro_batch,
        epochs=math.ceil(num_steps * recipe.batch / len(slides)),
        seed=recipe.seed,
        augment=recipe.augment,
    )
    learner, roots = Learner(model, recipe, num_steps), _Roots()
    with ThreadPoolExecutor(model.config.zoom.num_in_flight, thread_name_prefix="fetch") as pool:
        for step in range(num_steps):
            micro_batches = []
            for index in range(order.micro_batches_per_step):
                positions = order.micro_batch_of(step, index)
                chosen = [slides[i] for i in order.slides(positions)]
                batch = reader.batch([slide.uri for slide in chosen])
                fetch = in_frames(roots.first(batch), order.frames(positions))
                label_B = torch.tensor([float(slide.label or 0) for slide in chosen])
                micro_batches.append((index, batch.side_px, fetch, label_B))
            sums = learner.step(step, micro_batches, pool)
            if after_step is not None:
                after_step(step + 1, sums)
    return learner


class _Roots:
    """The root windows of a cohort, each read once and kept: what Ray Data streams ahead in a real training."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Windows] = {}

    def first(self, batch: Batch) -> Fetch:
        """A fetch that answers layer 0 from memory."""

        def fetch(ask: WindowRequest) -> Windows:
            if ask.layer > 0:
                return batch.fetch(ask)
            keys = [(batch.info[b].uri, ask.out_px) for b in ask.slide]
            missing = [n for n, key in enumerate(keys) if key not in self._kept]
            if missing:
                part = WindowRequest(0, ask.slide[missing], ask.region[missing], ask.out_px, ask.margin_px)
                read = batch.fetch(part)
                for n, at in enumerate(missing):
                    one = Windows(
                        pixels=read.pixels[n : n + 1].copy(), place=read.place[n : n + 1], level=read.level[n : n + 1]
                    )
                    self._kept[keys[at]] = one
            found = [self._kept[key] for key in keys]
            return Windows(
                pixels=np.concatenate([one.pixels for one in found]),
                place=np.concatenate([one.place for one in found]),
                level=np.concatenate([one.level for one in found]),
            )

        return fetch
