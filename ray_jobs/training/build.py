"""Builds a worker's attempt at a training from its task; the trials of a search are built here too."""

from __future__ import annotations

import logging

import torch

from magnet.zoom import MagNet
from ray_jobs.training.attempt import Attempt
from ray_jobs.training.group import gather
from ray_jobs.training.learner import Learner
from ray_jobs.training.memory.fit import fit_to_gpus, get_gpu_budget_bytes
from ray_jobs.training.preemption import PreemptionNotice
from ray_jobs.training.protocols import Monitor, ProgressSink, ReaderOpener, Reporter, Tracker
from ray_jobs.training.task import Task
from service import storage
from service.slides.reader_protocol import Reader


def build_attempt(
    task: Task,
    device: torch.device,
    reader: Reader,
    *,
    network: type[MagNet] = MagNet,
    rank: int = 0,
    num_workers: int = 1,
    tracker: Tracker | None = None,
    monitor: Monitor | None = None,
    report: Reporter | None = None,
    notice: PreemptionNotice | None = None,
    cold_reader: ReaderOpener | None = None,
    record_progress: ProgressSink | None = None,
) -> Attempt:
    """Set up this process, fit the micro-batch to the GPUs, and build the model and its attempt.

    Args:
        task: the training.
        device: device of this worker.
        reader: reads regions.
        network: class of the model; a benchmark replaces it.
        rank, num_workers, tracker, monitor, report, notice, cold_reader, record_progress: see `Attempt`.

    Returns:
        The attempt; its `task` has the micro-batch that fits.

    Raises:
        DoesNotFitError: one slide at a time needs too much memory.
    """
    logging.getLogger().setLevel(logging.WARNING)  # Ray's workers let every library log at INFO
    torch.set_num_threads(task.settings.compute.cpus_per_worker)
    budgets_bytes = gather(get_gpu_budget_bytes(task.settings.compute, device), num_workers)
    task, predicted_bytes = fit_to_gpus(task, budgets_bytes, num_workers)
    torch.manual_seed(task.settings.recipe.seed)  # the same initial weights on all workers
    model = network(task.settings.model, fetch_bytes=storage.read_bytes).to(device)
    learner = Learner(model, task.settings.recipe, task.order.num_steps, num_workers)
    return Attempt(
        task,
        learner,
        reader,
        rank=rank,
        num_workers=num_workers,
        tracker=tracker,
        monitor=monitor,
        report=report,
        predicted_bytes=predicted_bytes,
        notice=notice,
        cold_reader=cold_reader,
        record_progress=record_progress,
    )
