"""What an attempt leaves for the next one: a checkpoint of all that the training continues from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from magnet.config import ModelConfig
from magnet.health import ViewedRegions
from ray_jobs.models import checkpoints
from ray_jobs.models.checkpoint_store import CheckpointStore
from ray_jobs.training.evaluate import Evaluation
from ray_jobs.training.group import gather
from ray_jobs.training.learner import Learner
from ray_jobs.training.record.epoch_sums import Sums


@dataclass(frozen=True, slots=True)
class AttemptState:
    """The state of a training apart from that of its learner."""

    step: int
    """Number of steps done."""
    sums: Sums
    """Sums over the epoch so far and over all workers."""
    viewed: Mapping[str, ViewedRegions]
    """Regions viewed on the validation slides at the end of the last epoch, by slide_id."""
    lost: Mapping[str, str]
    """Reason by URI of each slide in quarantine."""


def publish(
    store: CheckpointStore,
    learner: Learner,
    model: ModelConfig,
    state: AttemptState,
    metrics: dict[str, float],
    validation: Evaluation | None,
) -> None:
    """Publish a checkpoint.

    Args:
        store: receives it.
        learner: model and optimizer.
        model: configuration of the model.
        state: the rest of the state.
        metrics: metrics of the epoch that ends here; empty within an epoch.
        validation: scores at the end of the epoch; None within an epoch.

    Raises:
        StorageError: the store failed or is full.
    """
    threshold = 0.5 if validation is None else validation.threshold
    saved = checkpoints.CheckpointInfo(model, state.step, metrics, threshold)
    # In the file the viewed regions are called "looked".
    rest = {"sums": state.sums, "lost": dict(state.lost), "looked": _to_tensors(state.viewed)}
    files = checkpoints.pack_checkpoint(learner.model, saved, learner.state_dict() | rest)
    if validation is not None:
        files[checkpoints.VALIDATION_FILE] = json.dumps(validation.to_dict()).encode()
    # None without a validation, as within an epoch: such a checkpoint cannot be the best one.
    store.publish(files, state.step, metrics.get("val/selection"))


def restore(store: CheckpointStore, learner: Learner, rank: int, num_workers: int) -> AttemptState | None:
    """Load the newest undamaged checkpoint into a learner.

    The first worker selects the checkpoint for all: the content of the store may change between two reads.

    Args:
        store: holds the checkpoints.
        learner: receives weights and optimizer state.
        rank: rank of this worker.
        num_workers: number of workers in the group.

    Returns:
        The rest of the state; None if the job has no checkpoint.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        newest = store.fetch_newest(folder) if rank == 0 else None
        newest = gather(newest, num_workers)[0]
        if newest is None:
            return None
        if rank > 0:  # the first worker has the files: it had to read them to find an undamaged checkpoint
            store.fetch(newest, folder)
        checkpoints.load_weights(folder, learner.model)
        training = checkpoints.load_training(folder)
    learner.load_state_dict(training)
    return AttemptState(newest.step, training["sums"], _from_tensors(training["looked"]), training["lost"])


def _to_tensors(viewed: Mapping[str, ViewedRegions]) -> dict[str, list[list[torch.Tensor]]]:
    """Convert viewed regions to what a checkpoint can hold: it is read as tensors and plain values only."""
    return {
        slide_id: [[torch.from_numpy(layer) for layer in part] for part in (slide.regions, slide.tissue)]
        for slide_id, slide in viewed.items()
    }


def _from_tensors(tensors: Mapping[str, Any]) -> dict[str, ViewedRegions]:
    """Convert back what `_to_tensors` made."""
    return {
        slide_id: ViewedRegions(*(tuple(layer.numpy() for layer in part) for part in parts))
        for slide_id, parts in tensors.items()
    }
