"""What each Ray Train worker runs: an attempt at the training, with Ray's stream, device and group."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import ray.train
import ray.train.torch
import torch

from magnet.zoom import MagNet
from ray_jobs.attempt import Attempt, Task
from ray_jobs.learner import Learner, NotFiniteError
from ray_jobs.provenance import hardware_tags
from ray_jobs.quarantine import QuarantineError
from ray_jobs.stream import store_patience_s, stream
from ray_jobs.tracking import Tracker
from service import storage
from service.reader import RegionReader

__all__ = ["Task", "train"]


def train(config: dict[str, Any]) -> str | None:
    """Train the pickled ``config["task"]``, as one worker of the group.

    Returns:
        Why the training cannot go on, where trying again would end alike: Ray starts anew whoever raises an error.
    """
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train lets every library speak at INFO
    task: Task = pickle.loads(config["task"])
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    settings, order = task.settings, task.order
    compute = settings.compute
    torch.set_num_threads(compute.cpus_per_worker)
    torch.manual_seed(settings.recipe.seed)
    model = MagNet(settings.model, fetch_bytes=storage.read_bytes).to(ray.train.torch.get_device())
    learner = Learner(model, settings.recipe, order.num_steps, num_workers)
    tracker = _tracker(task, model.device) if rank == 0 else None
    with RegionReader(
        tile_cache_bytes=compute.tile_cache_mb << 20,
        num_threads=compute.reader_threads,
        deadline_s=store_patience_s(),
    ) as reader:
        attempt = Attempt(
            task, learner, reader, rank=rank, num_workers=num_workers, tracker=tracker, report=ray.train.report
        )
        uris, zoom = attempt.uris, settings.model.zoom
        try:
            attempt.run(lambda step: stream(uris, order, zoom, first_step=step, rank=rank, num_workers=num_workers))
        except (NotFiniteError, QuarantineError) as error:
            return str(error)
    return None


def _tracker(task: Task, device: torch.device) -> Tracker:
    """The first worker's."""
    tracker = Tracker(task.tracking_uri, task.run_id, task.folder)
    tracker.resume()
    tracker.note_tags(hardware_tags(device) | {"hardware.num_workers": str(task.settings.compute.num_workers)})
    return tracker
