"""How full the workers' cards get, beside what was predicted."""

from __future__ import annotations

import torch

from ray_jobs.tracking.mlflow_run import Tracker
from ray_jobs.training.group import gathered
from ray_jobs.training.progress import say


def compare_with_plan(tracker: Tracker, device: torch.device, micro_batch: int, predicted_bytes: int) -> None:
    """Say and note what the planner predicted and what the card's fullest moment was so far.

    Args:
        tracker: takes the tags.
        device: the card.
        micro_batch: that the prediction is for.
        predicted_bytes: peak memory of a step.
    """
    taken = torch.cuda.max_memory_allocated(device)
    say(
        f"memory: {taken / 1e9:.2f} GB at most in the first steps, {predicted_bytes / 1e9:.2f} GB predicted "
        f"for micro-batches of {micro_batch}"
    )
    gigabytes = {"predicted": predicted_bytes / 1e9, "measured": taken / 1e9}
    tracker.note_tags({f"memory.{name}_gb": f"{value:.3f}" for name, value in gigabytes.items()})


def peak_memory(device: torch.device, num_workers: int) -> dict[str, float]:
    """Of the fullest GPU, since the training began; nothing without GPUs. Every worker must come here."""
    if device.type != "cuda":
        return {}
    mine = torch.cuda.max_memory_allocated(device) / 1e9
    return {"train/peak_memory_gb": max(gathered(mine, num_workers))}
