"""A training that is interrupted anywhere continues as if it had not been; faults of the storage are reported.

In one process, on slides that are formulas, without Ray; tests/flows/test_faults.py kills real processes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.models import checkpoints
from ray_jobs.models.checkpoint_store import CheckpointStore
from ray_jobs.training.learner import NotFiniteError
from service.errors import StorageError
from tests.ray_jobs.training import attempt_rig
from tests.ray_jobs.training.attempt_rig import (
    SLOW,
    FakeReader,
    FakeTracker,
    make_attempt,
    make_task,
    train,
    train_until,
)

uninterrupted = attempt_rig.uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed_in", [(1,), pytest.param((2,), marks=SLOW), pytest.param((1, 1, 2), marks=SLOW)], ids=str
)
def test_after_any_interruption_all_losses_metrics_and_weights_are_as_without_it(
    uninterrupted: Any, tmp_path: Path, killed_in: Sequence[int]
) -> None:
    """Bit for bit: losses, means of epochs, validation, weights. Step 1 is in the middle of an epoch."""
    task = make_task(tmp_path)
    losses: dict[int, float] = {}
    epochs: dict[int, dict[str, float]] = {}
    for step in killed_in:
        first = train_until(task, step)
        losses, epochs = losses | first.losses(), epochs | first.epochs()
    rest, attempt = train(task)
    assert min(rest.losses()) == max(killed_in) + 1  # a checkpoint followed each step: nothing was done twice
    assert losses | rest.losses() == uninterrupted[0].losses()
    assert epochs | rest.epochs() == uninterrupted[0].epochs()
    assert all(torch.equal(value, uninterrupted[1][name]) for name, value in attempt.learner.model.state_dict().items())


@SLOW
def test_steps_since_the_last_checkpoint_are_repeated_with_the_same_losses(uninterrupted: Any, tmp_path: Path) -> None:
    task = make_task(tmp_path, minutes=1e9)  # checkpoints at the ends of epochs only
    first = train_until(task, 1)
    rest, _ = train(task)
    assert first.losses().items() <= rest.losses().items()
    assert rest.losses() == uninterrupted[0].losses()
    assert rest.epochs() == uninterrupted[0].epochs()


@SLOW
def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(
    uninterrupted: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_task(tmp_path)
    train_until(task, 2)
    newest = CheckpointStore(str(tmp_path)).list_published()[-1]
    torn = Path(newest.folder) / checkpoints.TRAINING_FILE
    torn.write_bytes(torn.read_bytes()[:-1])
    rest, _ = train(task)
    assert "is corrupt: its content differs from what was published; trying the checkpoint before it" in caplog.text
    assert min(rest.losses()) == 2
    assert rest.losses().items() <= uninterrupted[0].losses().items()
    assert rest.epochs() == uninterrupted[0].epochs()


@pytest.mark.slow
def test_a_full_disk_costs_one_checkpoint_and_does_not_stop_the_training(
    uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sync, has_room = os.fsync, iter([True] * 4 + [False] + [True] * 100)  # a checkpoint has four files within an epoch

    def fsync(descriptor: int) -> None:
        if not next(has_room):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    tracker, _ = train(make_task(tmp_path))
    assert tracker.losses() == uninterrupted[0].losses()
    printed = capsys.readouterr().out
    assert "warning: no checkpoint after step 2, training continues and tries again later" in printed
    assert "No space left on device" in printed
    assert CheckpointStore(str(tmp_path)).list_published()[-1].step == 3


@SLOW
def test_a_training_fails_if_its_last_checkpoint_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        train(make_task(tmp_path))


def test_a_non_finite_loss_stops_before_the_optimizer_step_and_names_the_slides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(tmp_path)
    train_until(task, 1)
    tracker = FakeTracker()
    attempt, stream = make_attempt(task, FakeReader(), tracker)
    attempt._restore()
    before = {name: p.detach().clone() for name, p in attempt.learner.model.named_parameters()}
    monkeypatch.setattr(attempt.learner, "_backward", lambda zoomed, label_B, sums: sums.update(loss=float("nan")))
    with pytest.raises(NotFiniteError, match=r"step 1: loss nan.*The step's slides: id\d, id\d, id\d, id\d\. Lower"):
        attempt.run(stream)
    assert all(torch.equal(p, before[name]) for name, p in attempt.learner.model.named_parameters())
    assert tracker.losses() == {}
