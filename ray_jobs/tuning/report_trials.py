"""Prints the progress of a search."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from ray_jobs.training.record.progress import format_duration, print_line
from service.progress.file import append_progress
from service.progress.record import Progress


class TrialReporter(Callback):
    """Prints the number of ended trials, the best objective and the time to go, when a trial ends."""

    def setup(self, total_num_samples: int | None = None, **_: Any) -> None:  # type: ignore[override]  # Ray: by name
        """Start to measure; Ray Tune calls this at the start of each attempt at the search."""
        self._started_s, self._num_ended_here = time.monotonic(), 0
        self._num_trials = total_num_samples

    def on_trial_complete(self, iteration: int, trials: Sequence[Trial], trial: Trial, **_: Any) -> None:
        """Print a line; Ray Tune calls this when a trial has ended by itself or was stopped early."""
        self._print(trials, trial)

    def on_trial_error(self, iteration: int, trials: Sequence[Trial], trial: Trial, **_: Any) -> None:
        """Print a line; Ray Tune calls this when a trial has failed for good."""
        self._print(trials, trial)

    def _print(self, trials: Sequence[Trial], last: Trial) -> None:
        self._num_ended_here += 1
        num_ended = sum(trial is last or trial.is_finished() for trial in trials)  # Tune marks the last one later
        total = max(self._num_trials or 0, len(trials))
        # The time of earlier attempts is unknown: only the trials that ended in this one give a rate.
        to_go_s = (time.monotonic() - self._started_s) / self._num_ended_here * (total - num_ended)
        values = [trial.last_result["objective"] for trial in trials if "objective" in (trial.last_result or {})]
        best = f"  best objective {max(values):.4f}" if values else ""
        print_line(f"trial {num_ended}/{total} ended{best}  {format_duration(to_go_s)} to go")
        append_progress(Progress(done=num_ended, total=total, eta_s=float(round(to_go_s)), activity="searching"))
