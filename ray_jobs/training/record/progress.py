"""Reports how far a training is: a line for people, a record for the job's supervisor."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from service.progress.record import Progress

REPORT_EVERY_S = 15.0
"""Seconds between two lines."""


class ProgressReporter:
    """Reports step, loss, rate and time to go, at most every `REPORT_EVERY_S` seconds and after the last step.

    It prints lines rather than a bar: Ray forwards a worker's output to the driver line by line.

    Args:
        first_step: step at which this attempt starts.
        num_steps: number of steps of the whole training.
        record: takes the same as a record; None: lines only, as in a trial, whose steps are not the job's.
    """

    def __init__(self, first_step: int, num_steps: int, record: Callable[[Progress], object] | None = None) -> None:
        self._first, self._num_steps, self._record = first_step, num_steps, record
        self._started_s = self._reported_s = time.perf_counter()

    def report(self, step: int, sums: dict[str, float]) -> None:
        """Report the progress after a step, if it is time to.

        Args:
            step: number of steps that are done.
            sums: `loss`, `slides`, `step_s` and `wait_s`, summed over this worker's part of the epoch so far.
        """
        now_s = time.perf_counter()
        if step == self._first + 1:  # the first step includes the start of the stream: not representative
            self._started_s = now_s
            return
        if not sums["slides"] or (step < self._num_steps and now_s - self._reported_s < REPORT_EVERY_S):
            return
        self._reported_s = now_s
        to_go_s = (now_s - self._started_s) / (step - self._first - 1) * (self._num_steps - step)
        print_line(
            f"step {step}/{self._num_steps}  train loss {sums['loss'] / sums['slides']:.4f}  "
            f"waiting {sums['wait_s'] / sums['step_s']:.0%}  {format_duration(to_go_s)} to go"
        )
        if self._record is not None:
            eta_s = float(round(to_go_s))
            self._record(Progress(done=step, total=self._num_steps, eta_s=eta_s, activity="training"))


def print_line(line: str) -> None:
    """Print a line. It avoids print(), whose replacement by Ray Train writes each line twice."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def format_duration(seconds: float) -> str:
    """Format a duration as "2:03" or "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
