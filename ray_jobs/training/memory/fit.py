"""Fits the batch of a training to the memory of the GPUs: how large a micro-batch may be, and what it then takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import torch

from magnet.config import ModelConfig, RecipeConfig
from magnet.memory import StepMemory, predict_step_memory
from magnet.plan import USABLE_SHARE, BatchSplit, find_largest_split, list_batch_splits
from ray_jobs.training.task import Task
from service.errors import UsageError
from service.settings.train import ComputeSettings, TrainSettings


class DoesNotFitError(UsageError):
    """A step needs more memory than a GPU has, even with one slide at a time. To act: the author of the settings."""


def get_first_gpu_bytes() -> int | None:
    """Return the memory of this machine's first GPU in bytes; None without a GPU."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def get_gpu_budget_bytes(compute: ComputeSettings, device: torch.device) -> float | None:
    """Return the GPU memory that the micro-batch is chosen for, in bytes.

    Args:
        compute: settings; a worker may have a share of a GPU, and `gpu_memory_gb` overrides its real memory.
        device: device of the worker.

    Returns:
        None where the micro-batch of the settings is used: without a GPU, and with `gpu_memory_gb` 0.
    """
    if device.type != "cuda" or compute.gpu_memory_gb == 0:
        return None
    share_bytes = torch.cuda.get_device_properties(device).total_memory * min(1.0, compute.gpus_per_worker or 1.0)
    return share_bytes if compute.gpu_memory_gb is None else compute.gpu_memory_gb * 1e9


def fit_to_gpus(task: Task, budgets_bytes: Sequence[float | None], num_workers: int) -> tuple[Task, int | None]:
    """Choose the micro-batch of a training for the smallest GPU of its workers.

    Args:
        task: the training.
        budgets_bytes: `get_gpu_budget_bytes` of each worker.
        num_workers: number of workers in the group.

    Returns:
        The training with that micro-batch, and the predicted peak memory of its steps in bytes; None without a GPU.

    Raises:
        DoesNotFitError: one slide at a time needs too much memory.
    """
    known = [budget for budget in budgets_bytes if budget is not None]
    if not known:
        return task, None
    settings = task.settings
    compute = replace(settings.compute, num_workers=num_workers)  # it decides how many micro-batches a worker has
    # The smallest GPU decides: micro-batches are the same on all workers, whichever computes them.
    memory = select_micro_batch(replace(settings, compute=compute), min(known))
    recipe = replace(settings.recipe, micro_batch=memory.micro_batch)
    return replace(task, settings=replace(settings, recipe=recipe)), memory.peak_bytes


def select_micro_batch(settings: TrainSettings, gpu_bytes: float) -> StepMemory:
    """Return the micro-batch for GPUs of this size, with its predicted memory.

    Raises:
        DoesNotFitError: one slide at a time needs too much memory.
    """

    def cut_fits(cut: BatchSplit) -> bool:
        return fits(predict_memory(settings, cut).peak_bytes, gpu_bytes)

    options = list_batch_cuts(settings)
    cut = find_largest_split(options, cut_fits)
    if cut is None:
        raise DoesNotFitError(explain_refusal(settings, predict_memory(settings, options[-1]).peak_bytes, gpu_bytes))
    return predict_memory(settings, cut)


def list_batch_cuts(settings: TrainSettings) -> list[BatchSplit]:
    """Return all ways to cut the batch into micro-batches, the largest first."""
    return list_batch_splits(settings.recipe.batch, settings.compute.num_workers)


def predict_memory(settings: TrainSettings, cut: BatchSplit) -> StepMemory:
    """Predict the peak memory of a worker's step whose batch is cut this way."""
    # These settings do not change the memory: with fixed values, all trials of a search share one measurement.
    recipe = replace(settings.recipe, seed=0, epochs=1, learning_rate=1.0, locator_learning_rate=None)
    in_flight = min(cut.per_worker, settings.model.zoom.num_in_flight)
    return _predict_memory(settings.model, recipe, cut.micro_batch, in_flight, cut.per_worker > 1)


@cache
def _predict_memory(
    model: ModelConfig, recipe: RecipeConfig, micro_batch: int, in_flight: int, accumulated: bool
) -> StepMemory:
    return predict_step_memory(model, recipe, micro_batch, in_flight=in_flight, accumulated=accumulated)


def fits(peak_bytes: float, gpu_bytes: float) -> bool:
    """Return whether a step with this peak leaves a GPU the memory that CUDA itself needs."""
    return peak_bytes <= USABLE_SHARE * gpu_bytes


def explain_refusal(settings: TrainSettings, peak_bytes: float, gpu_bytes: float) -> str:
    """Return the message that a schedule cannot be trained on a GPU, and what to do about it."""
    zoom, classifier = settings.model.zoom, settings.model.classifier
    return (
        f"schedule {','.join(map(str, zoom.schedule))} does not fit: one slide at a time needs {peak_bytes / 1e9:.1f} "
        f"GB, a GPU of {gpu_bytes / 1e9:.1f} GB has {USABLE_SHARE * gpu_bytes / 1e9:.1f} GB to use. "
        + " ".join(_advice(settings.recipe.precision, classifier.checkpointing))
    )


def _advice(precision: str, checkpointing: bool) -> Iterator[str]:
    yield "Take fewer regions per parent (model.zoom.schedule) or a smaller model.classifier.encoder."
    if not checkpointing:
        yield "model.classifier.checkpointing=true recomputes activations instead of keeping them."
    if precision == "fp32":
        yield "recipe.precision=bf16 nearly halves them."
