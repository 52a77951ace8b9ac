"""What an attempt hands to the next one: a checkpoint of all from which the training goes on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from magnet.config import ModelConfig
from magnet.health import Looked
from ray_jobs.models import checkpoints
from ray_jobs.models.checkpoint_store import CheckpointStore
from ray_jobs.training.epoch_sums import Sums
from ray_jobs.training.evaluate import Evaluation
from ray_jobs.training.group import gathered
from ray_jobs.training.learner import Learner


@dataclass(frozen=True, slots=True)
class State:
    """How far a training is, beside what its learner knows."""

    step: int
    """Steps done."""
    sums: Sums
    """Of the epoch so far, over all workers."""
    looked: Mapping[str, Looked]
    """Where the model looked on the validation slides at the end of the last epoch, by slide_id."""
    lost: Mapping[str, str]
    """Why slides are left out, by URI."""


def publish(
    store: CheckpointStore,
    learner: Learner,
    model: ModelConfig,
    state: State,
    metrics: dict[str, float],
    validation: Evaluation | None,
) -> None:
    """Publish a checkpoint.

    Args:
        store: takes it.
        learner: model and optimizer.
        model: what the model is built from.
        state: the rest.
        metrics: of the epoch that ends here; empty within one.
        validation: at its end; None within one.

    Raises:
        StorageError: the store failed or is full.
    """
    threshold = 0.5 if validation is None else validation.threshold
    saved = checkpoints.Saved(model, state.step, metrics, threshold)
    rest = {"sums": state.sums, "lost": dict(state.lost), "looked": _as_tensors(state.looked)}
    files = checkpoints.packed(learner.model, saved, learner.state_dict() | rest)
    if validation is not None:
        files[checkpoints.VALIDATION_FILE] = json.dumps(validation.to_dict()).encode()
    store.publish(files, state.step, metrics.get("val/selection"))


def restore(store: CheckpointStore, learner: Learner, rank: int, num_workers: int) -> State | None:
    """Bring a learner to the newest whole checkpoint, which the first worker chooses; None: there never was any.

    Raises:
        CheckpointError: there are some, and all are damaged.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        newest = store.fetch_newest(folder) if rank == 0 else None
        newest = gathered(newest, num_workers)[0]
        if newest is None:
            return None
        if rank > 0:
            store.fetch(newest, folder)
        checkpoints.load_weights(folder, learner.model)
        training = checkpoints.load_training(folder)
    learner.load_state_dict(training)
    return State(newest.step, training["sums"], _as_looked(training["looked"]), training["lost"])


def _as_tensors(looked: Mapping[str, Looked]) -> dict[str, list[list[torch.Tensor]]]:
    """As a checkpoint holds it."""
    return {
        name: [[torch.from_numpy(layer) for layer in part] for part in (one.regions, one.tissue)]
        for name, one in looked.items()
    }


def _as_looked(tensors: Mapping[str, Any]) -> dict[str, Looked]:
    return {
        name: Looked(*(tuple(layer.numpy() for layer in part) for part in parts)) for name, parts in tensors.items()
    }
