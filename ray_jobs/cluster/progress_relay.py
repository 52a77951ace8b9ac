"""Carries the progress of workers to the job's progress file, which is on the node of the driver.

A worker may run on another node, where it cannot reach the file: a small actor on the driver's node appends for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from service import environment
from service.progress.file import append_progress
from service.progress.record import Progress


class ProgressRelay:
    """The actor that appends to one progress file.

    Args:
        file: path on the driver's node.
    """

    def __init__(self, file: str) -> None:
        self._file = file

    def append(self, progress: Progress) -> None:
        """Append a record."""
        append_progress(progress, self._file)


def start_relay() -> ActorHandle[Any] | None:
    """Start the relay to this driver's progress file; None if no supervisor reads any."""
    file = environment.progress_file()
    if file is None:
        return None
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # It takes no CPU from the workers. It is restarted after a crash: a training of days must not lose its progress.
    actor: Any = ray.remote(ProgressRelay).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
    return actor.remote(file)


def make_progress_sink(relay: ActorHandle[Any] | None) -> Callable[[Progress], object] | None:
    """Return what a worker calls to record its progress; it neither waits nor raises. None without a relay."""
    return None if relay is None else relay.append.remote
