"""Ray Data with a scheduling loop that rests.

The loop runs in a thread of the process that iterates over a dataset, here the trainer. While finished blocks wait to
be consumed it polls without a pause, and holds the GIL for 70 % of the time (Ray 2.60, measured): the demo's training
ran at half its speed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

PAUSE_S = 0.1
"""Between two rounds of the loop; a block of root views lasts for seconds."""


class Pause(ExecutionCallback):
    """Sleeps at the end of each round in which finished blocks wait: there is no hurry then, and else there is."""

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """See `ExecutionCallback`."""
        output = executor._output_node
        if output is not None and output[1].output_queue.has_next():
            time.sleep(PAUSE_S)


def unhurried() -> None:
    """Datasets that this process makes from now on have a loop that rests."""
    context = ray.data.DataContext.get_current()
    if Pause not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Pause]
