"""The memory that a training takes on its GPUs, compared with the planner's prediction."""

from __future__ import annotations

import torch

from ray_jobs.training.group import gather


def measure_peak_bytes(device: torch.device) -> int:
    """Return the peak of the memory allocated on a GPU since the process began, in bytes."""
    return torch.cuda.max_memory_allocated(device)


def measure_peak_memory(device: torch.device, num_workers: int) -> dict[str, float]:
    """Return the metric of the peak memory, that of the fullest GPU of all workers in GB; empty without GPUs.

    Every worker must call this equally often.
    """
    if device.type != "cuda":
        return {}
    return {"train/peak_memory_gb": max(gather(measure_peak_bytes(device) / 1e9, num_workers))}
