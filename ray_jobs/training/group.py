"""The workers of a training as a group: what each of them has, known to all."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import distributed

Thing = TypeVar("Thing")


def gathered(mine: Thing, num_workers: int) -> list[Thing]:
    """What every worker has, by rank. Every worker must come here equally often; one alone needs no process group."""
    if num_workers == 1:
        return [mine]
    everyone: list[Any] = [None] * num_workers
    distributed.all_gather_object(everyone, mine)
    return everyone
