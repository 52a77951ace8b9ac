"""How far a search is, said when a trial ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from ray_jobs.training.progress import clock, say
from service.progress.file import append_progress
from service.progress.record import Progress


class TrialsTold(Callback):
    """Prints a line with trials ended, the best objective and the time to go, after each trial."""

    def setup(self, total_num_samples: int | None = None, **_: Any) -> None:  # type: ignore[override]  # Ray: by name
        """Ray Tune: at the start of each attempt at the search."""
        self._started_s, self._ended_here = time.monotonic(), 0
        self._num_trials = total_num_samples

    def on_trial_complete(self, iteration: int, trials: Sequence[Trial], trial: Trial, **_: Any) -> None:
        """Ray Tune: a trial has ended by itself or was stopped early."""
        self._tell(trials, trial)

    def on_trial_error(self, iteration: int, trials: Sequence[Trial], trial: Trial, **_: Any) -> None:
        """Ray Tune: a trial has failed for good."""
        self._tell(trials, trial)

    def _tell(self, trials: Sequence[Trial], last: Trial) -> None:
        self._ended_here += 1
        ended = sum(one is last or one.is_finished() for one in trials)  # Tune marks the last one later
        total = max(self._num_trials or 0, len(trials))
        to_go_s = (time.monotonic() - self._started_s) / self._ended_here * (total - ended)
        values = [one.last_result["objective"] for one in trials if "objective" in (one.last_result or {})]
        best = f"  best objective {max(values):.4f}" if values else ""
        say(f"trial {ended}/{total} ended{best}  {clock(to_go_s)} to go")
        append_progress(Progress(done=ended, total=total, eta_s=float(round(to_go_s)), activity="searching"))
