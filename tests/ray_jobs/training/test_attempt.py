"""A training that is cut short anywhere goes on as if nothing had happened; what fails under it is told, not hidden.

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
from tests.ray_jobs.training.attempt_rig import SLOW, FakeReader, FakeTracker, attempt, task, train, train_until

no_monitor, whole = attempt_rig.no_monitor, attempt_rig.whole


@pytest.mark.slow
@pytest.mark.parametrize("deaths", [(1,), pytest.param((2,), marks=SLOW), pytest.param((1, 1, 2), marks=SLOW)], ids=str)
def test_after_any_death_each_step_and_epoch_is_as_without_one(
    whole: Any, tmp_path: Path, deaths: Sequence[int]
) -> None:
    """Step by step, bit for bit: losses, epoch's means, validation, weights. Step 1 is in the midst of an epoch."""
    it = task(tmp_path)
    losses: dict[int, float] = {}
    epochs: dict[int, dict[str, float]] = {}
    for step in deaths:
        cut = train_until(it, step)
        losses, epochs = losses | cut.losses(), epochs | cut.epochs()
    rest, made = train(it)
    assert min(rest.losses()) == max(deaths) + 1  # a checkpoint followed each step: nothing was done twice
    assert losses | rest.losses() == whole[0].losses()
    assert epochs | rest.epochs() == whole[0].epochs()
    assert all(torch.equal(value, whole[1][name]) for name, value in made.learner.model.state_dict().items())


@SLOW
def test_steps_since_the_last_checkpoint_are_repeated_alike(whole: Any, tmp_path: Path) -> None:
    it = task(tmp_path, minutes=1e9)  # none but at the ends of epochs
    cut = train_until(it, 1)
    rest, _ = train(it)
    assert cut.losses().items() <= rest.losses().items()
    assert rest.losses() == whole[0].losses()
    assert rest.epochs() == whole[0].epochs()


@SLOW
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    whole: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    it = task(tmp_path)
    train_until(it, 2)
    newest = CheckpointStore(str(tmp_path)).published()[-1]
    torn = Path(newest.folder) / checkpoints.TRAINING_FILE
    torn.write_bytes(torn.read_bytes()[:-1])
    rest, _ = train(it)
    assert "is damaged, its content is not what was published; going back" in caplog.text
    assert min(rest.losses()) == 2
    assert rest.losses().items() <= whole[0].losses().items()
    assert rest.epochs() == whole[0].epochs()


@pytest.mark.slow
def test_a_full_disk_costs_a_checkpoint_and_not_the_training(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sync, room = os.fsync, iter([True] * 4 + [False] + [True] * 100)  # a checkpoint has four files within an epoch

    def fsync(descriptor: int) -> None:
        if not next(room):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    tracker, _ = train(task(tmp_path))
    assert tracker.losses() == whole[0].losses()
    said = capsys.readouterr().out
    assert "warning: no checkpoint after step 2, training goes on and tries again later" in said
    assert "No space left on device" in said
    assert CheckpointStore(str(tmp_path)).published()[-1].step == 3


@SLOW
def test_the_last_checkpoint_is_not_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        train(task(tmp_path))


def test_a_loss_that_is_no_number_stops_before_the_step_and_names_its_slides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = task(tmp_path)
    train_until(it, 1)
    tracker = FakeTracker()
    made, stream = attempt(it, FakeReader(), tracker)
    made._restore()
    before = {name: p.detach().clone() for name, p in made.learner.model.named_parameters()}
    monkeypatch.setattr(made.learner, "_backward", lambda zoomed, label_B, sums: sums.update(loss=float("nan")))
    with pytest.raises(NotFiniteError, match=r"step 1: loss nan.*The step's slides: id\d, id\d, id\d, id\d\. Lower"):
        made.run(stream)
    assert all(torch.equal(p, before[name]) for name, p in made.learner.model.named_parameters())
    assert tracker.losses() == {}
