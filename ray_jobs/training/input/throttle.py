"""A pause in the scheduling loop of Ray Data.

The loop runs in a thread of the process that iterates over a dataset, here the training worker. While finished blocks
wait to be consumed it polls without a pause and holds the GIL for 70 % of the time (measured with Ray 2.60): the demo's
training ran at half its speed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

PAUSE_S = 0.1
"""Seconds between two rounds of the loop; a block of root views lasts for seconds."""


class PauseCallback(ExecutionCallback):
    """Sleeps at the end of each round of the loop in which finished blocks wait to be consumed."""

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Sleep if there is output; see `ExecutionCallback`."""
        output = executor._output_node
        # Without output the training waits for this loop, which must then run at full speed.
        if output is not None and output[1].output_queue.has_next():
            time.sleep(PAUSE_S)


def throttle_datasets() -> None:
    """Add the pause to all datasets that this process creates from now on."""
    context = ray.data.DataContext.get_current()
    if PauseCallback not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, PauseCallback]
