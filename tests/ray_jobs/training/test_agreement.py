"""After a step all workers have the same status, whichever of them it comes from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ray_jobs.training import agreement
from ray_jobs.training.agreement import GroupStatus, WorkerStatus

QUIET = WorkerStatus(loss=0.0, num_slides=0.0, lost={}, checkpoint_due=False, poll_due=False, preempted=False)


def exchange(monkeypatch: pytest.MonkeyPatch, *statuses: WorkerStatus) -> GroupStatus:
    monkeypatch.setattr(agreement, "gather", lambda status, num_workers: list(statuses))
    return GroupStatus.exchange(statuses[-1], len(statuses))


def test_the_loss_is_the_mean_over_the_slides_of_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = (replace(QUIET, loss=6.0, num_slides=3.0), replace(QUIET, loss=2.0, num_slides=1.0))
    assert exchange(monkeypatch, *statuses).mean_loss == 2.0
    assert exchange(monkeypatch, QUIET, QUIET).mean_loss is None


def test_lost_slides_and_preemption_of_any_worker_reach_all(monkeypatch: pytest.MonkeyPatch) -> None:
    group = exchange(
        monkeypatch, replace(QUIET, lost={"a": "torn"}), replace(QUIET, lost={"b": "missing"}, preempted=True)
    )
    assert group.lost == {"a": "torn", "b": "missing"}
    assert group.preempted


def test_only_the_clock_of_the_first_worker_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    due = replace(QUIET, checkpoint_due=True, poll_due=True)
    first, second = exchange(monkeypatch, due, QUIET), exchange(monkeypatch, QUIET, due)
    assert (first.checkpoint_due, first.poll_due) == (True, True)
    assert (second.checkpoint_due, second.poll_due) == (False, False)
