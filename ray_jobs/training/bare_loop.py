"""A training without Ray, MLflow or checkpoints: the order, learner and reader of a real one in one loop.

For benchmarks, which compare the training service with it, and for tests and notebooks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from magnet.config import RecipeConfig
from magnet.windows import Fetch, WindowRequest, Windows, wrap_in_frames
from magnet.zoom import MagNet
from ray_jobs.training.input.micro_batch import StepInput
from ray_jobs.training.input.order import Order
from ray_jobs.training.learner import Learner
from service.cohort.manifest import Slide
from service.slides.reader_protocol import Batch, Reader

AfterStep = Callable[[int, dict[str, float]], None]
"""Is called with the number of steps done and the sums of the last step."""


def train_bare(
    model: MagNet,
    recipe: RecipeConfig,
    slides: Sequence[Slide],
    reader: Reader,
    num_steps: int,
    after_step: AfterStep | None = None,
) -> Learner:
    """Train for a number of steps, which learning rate and exploration follow; `recipe.epochs` is not used.

    Args:
        model: network to train.
        recipe: how it is trained.
        slides: labelled slides.
        reader: reads their regions.
        num_steps: number of optimizer steps.
        after_step: called after each step.

    Returns:
        The learner with the trained model.
    """
    order = Order(
        num_slides=len(slides),
        batch=recipe.batch,
        micro_batch=recipe.micro_batch,
        epochs=math.ceil(num_steps * recipe.batch / len(slides)),
        seed=recipe.seed,
        augment=recipe.augment,
    )
    # One thread per zoom in flight, as in a real training.
    learner, roots = Learner(model, recipe, num_steps), _RootCache()
    with ThreadPoolExecutor(model.config.zoom.num_in_flight, thread_name_prefix="fetch") as pool:
        for step in range(num_steps):
            inputs = []
            for index in range(order.micro_batches_per_step):
                positions = order.micro_batch_of(step, index)
                members = [slides[i] for i in order.slides(positions)]
                batch = reader.batch([slide.uri for slide in members])
                fetch = wrap_in_frames(roots.fetch_from(batch), order.frames(positions))
                label_B = torch.tensor([float(slide.label or 0) for slide in members])
                inputs.append(StepInput(index=index, side_px_B=batch.side_px, fetch=fetch, label_B=label_B))
            sums = learner.step(step, inputs, pool)
            if after_step is not None:
                after_step(step + 1, sums)
    return learner


class _RootCache:
    """The root windows of a cohort, each read once and kept.

    In a real training Ray Data streams them in advance; here they must not count as reads during the steps either.
    """

    def __init__(self) -> None:
        self._windows: dict[tuple[str, int], Windows] = {}
        """Window by URI and side in output pixels."""

    def fetch_from(self, batch: Batch) -> Fetch:
        """Return a fetch of open slides that answers layer 0 from the cache."""

        def fetch(request: WindowRequest) -> Windows:
            if request.layer > 0:
                return batch.fetch(request)
            keys = [(batch.info[b].uri, request.out_px) for b in request.slide]
            missing = [n for n, key in enumerate(keys) if key not in self._windows]
            if missing:
                self._add(batch, request, missing, [keys[n] for n in missing])
            return _concatenate([self._windows[key] for key in keys])

        return fetch

    def _add(self, batch: Batch, request: WindowRequest, rows: Sequence[int], keys: Sequence[tuple[str, int]]) -> None:
        """Read some rows of a request into the cache."""
        part = WindowRequest(0, request.slide[rows], request.region[rows], request.out_px, request.margin_px)
        windows = batch.fetch(part)
        for n, key in enumerate(keys):
            # A copy: a view would keep the pixels of the whole request alive.
            pixels = windows.pixels[n : n + 1].copy()
            self._windows[key] = Windows(pixels=pixels, place=windows.place[n : n + 1], level=windows.level[n : n + 1])


def _concatenate(windows: Sequence[Windows]) -> Windows:
    return Windows(
        pixels=np.concatenate([window.pixels for window in windows]),
        place=np.concatenate([window.place for window in windows]),
        level=np.concatenate([window.level for window in windows]),
    )
