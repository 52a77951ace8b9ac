"""The report of how far a training is."""

import pytest

from ray_jobs.training.record import progress
from ray_jobs.training.record.progress import ProgressReporter
from service.progress.record import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_it_reports_step_mean_loss_share_of_waiting_and_time_to_go(clock, capsys) -> None:
    records: list[Progress] = []
    reporter = ProgressReporter(10, 110, records.append)
    clock[0] += 1000  # until the first step is done
    reporter.report(11, {"loss": 6.0, "slides": 8.0})
    clock[0] += 40  # 20 steps in 40 s: the other 79 take 158 s
    reporter.report(31, {"loss": 6.0, "slides": 8.0, "step_s": 40.0, "wait_s": 2.0})
    assert capsys.readouterr().out == "step 31/110  train loss 0.7500  waiting 5%  2:38 to go\n"
    assert records == [Progress(done=31, total=110, eta_s=158.0, activity="training")]


def test_two_reports_are_some_seconds_apart(clock, capsys) -> None:
    records: list[Progress] = []
    reporter = ProgressReporter(0, 1000, records.append)
    for step in range(1, 61):  # a second each
        clock[0] += 1
        reporter.report(step, {"loss": 1.0, "slides": 1.0, "step_s": 1.0, "wait_s": 0.0})
    assert len(capsys.readouterr().out.splitlines()) == 60 // progress.REPORT_EVERY_S
    assert len(records) == 60 // progress.REPORT_EVERY_S


def test_the_last_step_is_always_reported(clock, capsys) -> None:
    reporter = ProgressReporter(0, 3)
    for step in (1, 2, 3):
        clock[0] += 1
        reporter.report(step, {"loss": 1.0, "slides": 1.0, "step_s": 1.0, "wait_s": 0.0})
    assert capsys.readouterr().out == "step 3/3  train loss 1.0000  waiting 0%  0:00 to go\n"


def test_nothing_is_reported_before_this_worker_has_had_a_slide(clock, capsys) -> None:
    reporter = ProgressReporter(0, 10)
    clock[0] += 100
    reporter.report(1, {"slides": 0.0})
    clock[0] += 100
    reporter.report(2, {"slides": 0.0})
    assert capsys.readouterr().out == ""


def test_a_duration_has_hours_only_when_it_needs_them() -> None:
    assert [progress.format_duration(seconds) for seconds in (0, 123, 3725)] == ["0:00", "2:03", "1:02:05"]
