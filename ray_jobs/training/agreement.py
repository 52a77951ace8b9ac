"""The status that workers exchange after a step, so that all of them act on it in the same way.

A checkpoint, a preemption and a lost slide lead to collectives or change the next step: no worker may decide alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ray_jobs.training.group import gather


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """What one worker reports after a step."""

    loss: float
    """Sum of the losses of its slides."""
    num_slides: float
    """Number of its slides."""
    lost: dict[str, str]
    """Reason by URI of each slide that it lost."""
    checkpoint_due: bool
    """Whether enough time has passed since the last checkpoint."""
    poll_due: bool
    """Whether it is time to ask the cluster for a preemption."""
    preempted: bool
    """Whether its machine is about to be taken away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """What all workers know after a step, the same on each."""

    mean_loss: float | None
    """Mean loss of the step's slides; None if all of them were lost."""
    lost: dict[str, str]
    """Reason by URI of each slide that any worker lost."""
    checkpoint_due: bool
    """Whether all workers save now."""
    poll_due: bool
    """Whether all workers ask the cluster now."""
    preempted: bool
    """Whether the machine of any worker is about to be taken away."""

    @classmethod
    def exchange(cls, worker_status: WorkerStatus, num_workers: int) -> Self:
        """Send this worker's status to all workers, and combine theirs."""
        statuses = gather(worker_status, num_workers)
        num_slides = sum(status.num_slides for status in statuses)
        return cls(
            mean_loss=sum(status.loss for status in statuses) / num_slides if num_slides else None,
            lost={uri: reason for status in statuses for uri, reason in status.lost.items()},
            # The clocks of the workers differ; the first worker's decides.
            checkpoint_due=statuses[0].checkpoint_due,
            poll_due=statuses[0].poll_due,
            preempted=any(status.preempted for status in statuses),
        )
