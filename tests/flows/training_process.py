"""A training without Ray, as a separate process: it prints each step and epoch as JSON, and stops at SIGTERM.

    python tests/flows/training_process.py MANIFEST FOLDER CHECKPOINT_MINUTES

Exit status 3: it was preempted and has saved a checkpoint.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from magnet.zoom import MagNet
from ray_jobs.training.attempt import Attempt
from ray_jobs.training.input.deadline import get_store_deadline_s
from ray_jobs.training.input.roots import stream_locally
from ray_jobs.training.learner import Learner
from ray_jobs.training.preemption import PreemptedError, PreemptionNotice
from ray_jobs.training.record.progress import print_line
from ray_jobs.training.task import Task
from service.cohort.manifest import load_manifest
from service.settings.train import read_train_settings
from service.slides.reader import RegionReader

SETTINGS = [
    "model.zoom={schedule: [2, 2], map_px: 28, view_px: 56, patch_px: 32}",
    "model.classifier.encoder=test_resnet",
    "recipe={epochs: 4, batch: 2, micro_batch: 2, seed: 1}",
    "compute.tile_cache_mb=0",  # each step depends on the store
]
PREEMPTED = 3


class PrintingLearner(Learner):
    """A learner that prints the sums of each step."""

    def step(self, step: int, *rest: Any, **options: Any) -> dict[str, float]:
        sums = super().step(step, *rest, **options)
        print_line(json.dumps({"step": step + 1} | sums))
        return sums


def main() -> int:
    """Train."""
    uri, folder, minutes = sys.argv[1:]
    torch.set_num_threads(1)
    settings = read_train_settings(None, [*SETTINGS, f"compute.checkpoint_minutes={minutes}"])
    manifest = load_manifest(uri, need_labels=True)
    task = Task(settings, manifest.split("train"), manifest.split("val"), "", "", folder)
    torch.manual_seed(settings.recipe.seed)
    learner = PrintingLearner(MagNet(settings.model, to_be_loaded=True), settings.recipe, task.order.num_steps)
    with PreemptionNotice() as notice, RegionReader(0, 4, deadline_s=get_store_deadline_s()) as reader:
        attempt = Attempt(task, learner, reader, report=lambda metrics: print_line(json.dumps(metrics)), notice=notice)
        try:
            attempt.run(
                lambda step: stream_locally(reader, task.uris, task.order, settings.model.zoom, first_step=step)
            )
        except PreemptedError as error:
            print_line(str(error))
            return PREEMPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
