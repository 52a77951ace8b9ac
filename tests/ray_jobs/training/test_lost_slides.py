"""A slide that becomes unreadable during a training is left out and named, and never replaced, within a budget."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_jobs.models import checkpoints
from ray_jobs.models.checkpoint_store import CheckpointStore
from ray_jobs.training.quarantine import QuarantineError
from service.errors import StorageError
from tests.ray_jobs.training import attempt_rig
from tests.ray_jobs.training.attempt_rig import (
    NUM_TRAIN,
    SLOW,
    FakeBatch,
    FakeReader,
    FakeTracker,
    Killed,
    make_attempt,
    make_task,
    train,
)

uninterrupted = attempt_rig.uninterrupted


@pytest.mark.parametrize("layer", [1, *(pytest.param(layer, marks=SLOW) for layer in (-1, 0, 2))])
def test_a_slide_that_becomes_unreadable_is_left_out_and_named(tmp_path: Path, layer: int) -> None:
    """Whether opening it fails (layer -1), reading its root view (0) or regions below: from step 1 on."""
    victim = "s0"
    task = make_task(tmp_path, epochs=4)
    reader, tracker = FakeReader(), FakeTracker()
    attempt, stream = make_attempt(task, reader, tracker)
    take_step = attempt.learner.step

    def break_slide(number: int, *args: Any) -> dict[str, float]:
        reader.fails = lambda uri, at: uri == victim and at == layer
        return take_step(number, *args)

    attempt.learner.step = break_slide  # type: ignore[method-assign]  # a fake in its place
    attempt.run(stream)
    assert list(attempt.quarantine.lost) == [victim]
    assert tracker.tags["quarantined"] == "id0"
    [row] = list(csv.DictReader(io.StringIO(tracker.texts["quarantine.csv"])))
    assert (row["slide_id"], row["uri"]) == ("id0", victim)
    assert ("header is gone" if layer == -1 else f"layer {layer} is torn") in row["reason"]
    assert tracker.epochs()[4]["train/quarantined"] == 1
    assert len(tracker.losses()) == task.order.num_steps  # no step was left out


@SLOW
def test_the_place_of_a_lost_slide_in_the_batch_stays_empty(tmp_path: Path) -> None:
    """The gradients of a step are those of its other slides, divided by the size of the whole batch."""

    def gradients(fails: Callable[[str, int], bool]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        task = make_task(tmp_path / str(len(list(tmp_path.iterdir()))), epochs=1)
        attempt, stream = make_attempt(task, FakeReader(fails), FakeTracker())
        grads: dict[str, torch.Tensor] = {}
        named = dict(attempt.learner.model.named_parameters())
        attempt.learner.optimizer.register_step_pre_hook(
            lambda *_: grads.update({name: p.grad.clone() for name, p in named.items() if name not in grads})
        )
        sums = []
        take_step = attempt.learner.step

        def keep_sums(*args: Any) -> dict[str, float]:
            sums.append(take_step(*args))
            return sums[-1]

        attempt.learner.step = keep_sums  # type: ignore[method-assign]  # a fake in its place
        attempt.run(stream)
        return grads, sums[0]

    first = make_task(tmp_path).order.slides(np.arange(4))
    victim = f"s{first[0]}"
    early = gradients(lambda uri, at: uri == victim and at == -1)
    late = gradients(lambda uri, at: uri == victim and at == 2)
    assert early[1]["slides"] == late[1]["slides"] == 3
    assert early[1]["loss"] == pytest.approx(late[1]["loss"], rel=1e-5)
    for name, gradient in early[0].items():
        torch.testing.assert_close(late[0][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@SLOW
def test_lost_slides_stay_lost_after_an_interruption(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    attempt, stream = make_attempt(task, FakeReader(lambda uri, at: uri == "s1" and at == 1), FakeTracker())

    def die(metrics: dict[str, float], /) -> None:
        raise Killed

    attempt.report = die  # after the first epoch
    with pytest.raises(Killed):
        attempt.run(stream)
    tracker, second_attempt = train(task)  # the slide can be read again
    assert list(second_attempt.quarantine.lost) == ["s1"]
    assert tracker.epochs()[2]["train/quarantined"] == 1


@SLOW
def test_a_lost_validation_slide_has_no_score(tmp_path: Path) -> None:
    _, attempt = train(make_task(tmp_path), FakeReader(lambda uri, at: uri == f"s{NUM_TRAIN}" and at >= 1))
    assert list(attempt.quarantine.lost) == [f"s{NUM_TRAIN}"]
    best = CheckpointStore(str(tmp_path)).find_best()
    assert best is not None
    scores = json.loads((Path(best.folder) / checkpoints.VALIDATION_FILE).read_text())
    assert scores["slide_id"] == ["id7"]
    assert len(scores["probability"]) == len(scores["label"]) == 1


def test_more_lost_slides_than_the_budget_end_the_training_and_are_all_named(tmp_path: Path) -> None:
    task = make_task(tmp_path, share=0.25)  # 2 of 8
    tracker = FakeTracker()
    attempt, stream = make_attempt(task, FakeReader(lambda uri, at: uri in ("s1", "s3", "s7") and at == 1), tracker)
    with pytest.raises(QuarantineError) as caught:
        attempt.run(stream)
    assert "3 slides became unreadable during the training, compute.quarantine_share allows 2" in str(caught.value)
    assert all(f"\n  {uri}: step " in str(caught.value) for uri in ("s1", "s3", "s7"))
    assert tracker.tags["quarantined"].split(", ") == [f"id{uri[1:]}" for uri in attempt.quarantine.lost]


def test_a_failing_store_loses_no_slide(tmp_path: Path) -> None:
    class UnavailableReader(FakeReader):
        def batch(self, uris: Sequence[str]) -> FakeBatch:
            raise StorageError("the store failed", uri=uris[0])

    attempt, stream = make_attempt(make_task(tmp_path), FakeReader(), FakeTracker())
    attempt.steps.reader = UnavailableReader()  # type: ignore[assignment]  # a fake in its place
    with pytest.raises(StorageError):
        attempt.run(stream)
    assert attempt.quarantine.lost == {}


@SLOW
def test_slides_of_the_next_step_are_opened_during_the_current_one(tmp_path: Path) -> None:
    task = make_task(tmp_path, minutes=1e9)
    reader = FakeReader()
    attempt, stream = make_attempt(task, reader, FakeTracker())
    take_step, num_opened = attempt.learner.step, []

    def count_opened(number: int, *args: Any) -> dict[str, float]:
        sums = take_step(number, *args)
        num_opened.append(len(reader.opened))
        return sums

    attempt.learner.step = count_opened  # type: ignore[method-assign]  # a fake in its place
    attempt.run(stream)
    per_step = 2 * task.settings.recipe.batch  # once for the roots, once for the training
    assert num_opened[0] >= 2 * per_step


@SLOW
def test_the_share_of_time_spent_waiting_is_logged(tmp_path: Path) -> None:
    tracker, _ = train(make_task(tmp_path))
    shares = [values["train/wait_share"] for _, values in tracker.points if "train/wait_share" in values]
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares)
