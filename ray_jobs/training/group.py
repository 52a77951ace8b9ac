"""Exchange between the workers of a training."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import distributed

Value = TypeVar("Value")


def gather(value: Value, num_workers: int) -> list[Value]:
    """Return every worker's value, by rank.

    Every worker must call this equally often, else the group waits until its timeout. A single worker needs no process
    group.

    Args:
        value: this worker's value; it must be picklable.
        num_workers: number of workers in the group.
    """
    if num_workers == 1:
        return [value]
    values: list[Any] = [None] * num_workers
    distributed.all_gather_object(values, value)
    return values
