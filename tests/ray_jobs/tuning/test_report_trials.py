"""The line with the progress of a search."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ray_jobs.tuning import report_trials
from ray_jobs.tuning.report_trials import TrialReporter
from service.environment import PROGRESS_FILE


@dataclass
class Trial:
    """A fake with what the callback uses of a trial."""

    finished: bool = False
    last_result: dict[str, float] = field(default_factory=dict)

    def is_finished(self) -> bool:
        return self.finished


def test_it_counts_trials_of_earlier_attempts_but_not_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "progress.jsonl"
    file.touch()
    monkeypatch.setenv(PROGRESS_FILE, str(file))
    now = [100.0]
    monkeypatch.setattr(report_trials.time, "monotonic", lambda: now[0])
    trials = [Trial(True, {"objective": 0.75}), Trial(True, {}), Trial(False, {"objective": 0.5}), Trial()]
    reporter = TrialReporter()
    reporter.setup(total_num_samples=10)
    now[0] += 30
    reporter.on_trial_complete(7, trials, trials[2])  # Tune marks it as ended only later
    assert capsys.readouterr().out == "trial 3/10 ended  best objective 0.7500  3:30 to go\n"  # 30 s for each of seven
    trials[2].finished = True
    now[0] += 10
    reporter.on_trial_error(9, trials, trials[3])
    assert capsys.readouterr().out == "trial 4/10 ended  best objective 0.7500  2:00 to go\n"
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"done": 3, "total": 10, "eta_s": 210.0, "activity": "searching"},
        {"done": 4, "total": 10, "eta_s": 120.0, "activity": "searching"},
    ]
