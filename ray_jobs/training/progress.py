"""How far a training is, said now and then."""

from __future__ import annotations

import sys
import time

EVERY_S = 15.0
"""Seconds between two lines."""


class Progress:
    """Prints a line with step, loss, rate and time to go, at most every `EVERY_S` seconds and after the last step.

    Lines rather than a bar: Ray carries a worker's output to the driver line by line.

    Args:
        first_step: where this attempt starts.
        num_steps: of the whole training.
    """

    def __init__(self, first_step: int, num_steps: int) -> None:
        self._first, self._num_steps = first_step, num_steps
        self._started_s = self._told_s = time.perf_counter()

    def tell(self, step: int, sums: dict[str, float]) -> None:
        """Say how far it is after `step` steps, if it is time to.

        Args:
            step: steps done.
            sums: `loss`, `slides`, `step_s` and `wait_s`, summed over this worker's part of the epoch so far.
        """
        now_s = time.perf_counter()
        if step == self._first + 1:  # it waited for the stream to come up: no measure of the others
            self._started_s = now_s
            return
        if not sums["slides"] or (step < self._num_steps and now_s - self._told_s < EVERY_S):
            return
        self._told_s = now_s
        to_go_s = (now_s - self._started_s) / (step - self._first - 1) * (self._num_steps - step)
        say(
            f"step {step}/{self._num_steps}  train loss {sums['loss'] / sums['slides']:.4f}  "
            f"waiting {sums['wait_s'] / sums['step_s']:.0%}  {clock(to_go_s)} to go"
        )


def say(line: str) -> None:
    """Print a line. Not print(): Ray Train's replacement for it writes each line twice."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def clock(seconds: float) -> str:
    """As "2:03" or "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
