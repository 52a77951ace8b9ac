"""A slide that turns unreadable in mid-training is left out from then on and named, never replaced; within a budget."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
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
    attempt,
    task,
    train,
)

no_monitor, whole = attempt_rig.no_monitor, attempt_rig.whole


@pytest.mark.parametrize("layer", [1, *(pytest.param(layer, marks=SLOW) for layer in (-1, 0, 2))])
def test_a_slide_that_turns_unreadable_is_left_out_and_named(whole: Any, tmp_path: Path, layer: int) -> None:
    """When it is opened, when its root is read, and when regions below are: from step 1 on."""
    victim = "s0"
    it = task(tmp_path, epochs=4)
    reader = FakeReader()
    tracker = FakeTracker()
    made, stream = attempt(it, reader, tracker)
    step = made.learner.step

    def breaking(number: int, *args: Any) -> dict[str, float]:
        reader.fails = lambda uri, at: uri == victim and at == layer
        return step(number, *args)

    made.learner.step = breaking  # type: ignore[method-assign]  # a fake in its place
    made.run(stream)
    assert list(made.quarantine.lost) == [victim]
    assert tracker.tags["quarantined"] == "id0"
    [row] = list(csv.DictReader(io.StringIO(tracker.texts["quarantine.csv"])))
    assert (row["slide_id"], row["uri"]) == ("id0", victim)
    assert ("header is gone" if layer == -1 else f"layer {layer} is torn") in row["reason"]
    assert tracker.epochs()[4]["train/quarantined"] == 1
    assert len(tracker.losses()) == it.order.num_steps  # no step was left out


@SLOW
def test_its_place_stays_empty_whoever_computes_it(tmp_path: Path) -> None:
    """Gradients of a step with a lost slide are the others' alone, divided by the whole batch."""

    def gradients(fails: Callable[[str, int], bool]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        it = task(tmp_path / str(len(list(tmp_path.iterdir()))), epochs=1)
        made, stream = attempt(it, FakeReader(fails), FakeTracker())
        found: dict[str, torch.Tensor] = {}
        named = dict(made.learner.model.named_parameters())
        made.learner.optimizer.register_step_pre_hook(
            lambda *_: found.update({name: p.grad.clone() for name, p in named.items() if name not in found})
        )
        sums = []
        share = made.learner.step
        made.learner.step = lambda *args: sums.append(share(*args)) or sums[-1]  # type: ignore[method-assign, func-returns-value]  # a fake in its place
        made.run(stream)
        return found, sums[0]

    first = task(tmp_path).order.slides(np.arange(4))
    victim = f"s{first[0]}"
    early = gradients(lambda uri, at: uri == victim and at == -1)
    late = gradients(lambda uri, at: uri == victim and at == 2)
    assert early[1]["slides"] == late[1]["slides"] == 3
    assert early[1]["loss"] == pytest.approx(late[1]["loss"], rel=1e-5)
    for name, gradient in early[0].items():
        torch.testing.assert_close(late[0][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@SLOW
def test_lost_slides_stay_lost_after_a_death(tmp_path: Path) -> None:
    it = task(tmp_path)
    torch.manual_seed(0)
    broken = FakeReader(lambda uri, at: uri == "s1" and at == 1)
    made, stream = attempt(it, broken, FakeTracker())
    made.report = lambda metrics: (_ for _ in ()).throw(Killed)  # after the first epoch
    with pytest.raises(Killed):
        made.run(stream)
    tracker, again = train(it)  # the slide can be read again
    assert list(again.quarantine.lost) == ["s1"]
    assert tracker.epochs()[2]["train/quarantined"] == 1


@SLOW
def test_a_lost_validation_slide_has_no_score(tmp_path: Path) -> None:
    _, made = train(task(tmp_path), FakeReader(lambda uri, at: uri == f"s{NUM_TRAIN}" and at >= 1))
    assert list(made.quarantine.lost) == [f"s{NUM_TRAIN}"]
    best = CheckpointStore(str(tmp_path)).best()
    assert best is not None
    scores = json.loads((Path(best.folder) / checkpoints.VALIDATION_FILE).read_text())
    assert scores["slide_id"] == ["id7"]
    assert len(scores["probability"]) == len(scores["label"]) == 1


def test_more_losses_than_the_budget_end_the_training_and_all_are_named(tmp_path: Path) -> None:
    it = task(tmp_path, share=0.25)  # 2 of 8
    tracker = FakeTracker()
    made, stream = attempt(it, FakeReader(lambda uri, at: uri in ("s1", "s3", "s7") and at == 1), tracker)
    with pytest.raises(QuarantineError) as caught:
        made.run(stream)
    assert "3 slides turned unreadable during the training, compute.quarantine_share allows 2" in str(caught.value)
    assert all(f"\n  {uri}: step " in str(caught.value) for uri in ("s1", "s3", "s7"))
    assert tracker.tags["quarantined"].split(", ") == [f"id{uri[1:]}" for uri in made.quarantine.lost]


def test_a_store_that_fails_is_no_fault_of_a_slide(tmp_path: Path) -> None:
    class Away(FakeReader):
        def batch(self, uris: Sequence[str]) -> FakeBatch:
            raise StorageError("the store failed", uri=uris[0])

    made, stream = attempt(task(tmp_path), FakeReader(), FakeTracker())
    made.reader = Away()  # type: ignore[assignment]  # a fake in its place
    with pytest.raises(StorageError):
        made.run(stream)
    assert made.quarantine.lost == {}


@SLOW
def test_other_slides_of_the_next_step_are_opened_during_this_one(tmp_path: Path) -> None:
    it = task(tmp_path, minutes=1e9)
    reader = FakeReader()
    made, stream = attempt(it, reader, FakeTracker())
    whole, seen = made.learner.step, []

    def step(number: int, *args: Any) -> dict[str, float]:
        done = whole(number, *args)
        seen.append(len(reader.opened))
        return done

    made.learner.step = step  # type: ignore[method-assign]  # a fake in its place
    made.run(stream)
    per_step = 2 * it.settings.recipe.batch  # once for the roots, once for the training
    assert seen[0] >= 2 * per_step


@SLOW
def test_the_share_of_waiting_is_logged(tmp_path: Path) -> None:
    tracker, _ = train(replace(task(tmp_path)))
    shares = [values["train/wait_share"] for _, values in tracker.points if "train/wait_share" in values]
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares)
