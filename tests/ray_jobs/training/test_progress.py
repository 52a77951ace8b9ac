"""The line that says how far a training is."""

import pytest

from ray_jobs.training import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_says_step_mean_loss_wait_share_and_time_to_go(clock, capsys) -> None:
    training = progress.Progress(first_step=10, num_steps=110)
    clock[0] += 1000  # until the first step is done
    training.tell(11, {"loss": 6.0, "slides": 8.0})
    clock[0] += 40  # 20 steps in 40 s: the other 79 take 158 s
    training.tell(31, {"loss": 6.0, "slides": 8.0, "step_s": 40.0, "wait_s": 2.0})
    assert capsys.readouterr().out == "step 31/110  train loss 0.7500  waiting 5%  2:38 to go\n"


def test_speaks_at_most_every_so_often(clock, capsys) -> None:
    training = progress.Progress(0, 1000)
    for step in range(1, 61):  # a second each
        clock[0] += 1
        training.tell(step, {"loss": 1.0, "slides": 1.0, "step_s": 1.0, "wait_s": 0.0})
    assert len(capsys.readouterr().out.splitlines()) == 60 // progress.EVERY_S


def test_the_last_step_is_always_told(clock, capsys) -> None:
    training = progress.Progress(0, 3)
    for step in (1, 2, 3):
        clock[0] += 1
        training.tell(step, {"loss": 1.0, "slides": 1.0, "step_s": 1.0, "wait_s": 0.0})
    assert capsys.readouterr().out == "step 3/3  train loss 1.0000  waiting 0%  0:00 to go\n"


def test_says_nothing_while_this_worker_has_seen_no_slide(clock, capsys) -> None:
    training = progress.Progress(0, 10)
    clock[0] += 100
    training.tell(1, {"slides": 0.0})
    clock[0] += 100
    training.tell(2, {"slides": 0.0})
    assert capsys.readouterr().out == ""
