"""A card decides how a step is cut, and nothing else; running out of memory cuts it smaller and changes no loss."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from magnet.config import ClassifierConfig
from magnet.memory import Memory
from ray_jobs.training import fit, worker
from ray_jobs.training.fit import DoesNotFitError
from service.settings.train import TrainSettings
from tests.ray_jobs.training import attempt_rig as attempts

no_monitor = attempts.no_monitor

BYTES_PER_SLIDE = 10**9


@pytest.fixture
def a_gigabyte_per_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    def predicted(settings: TrainSettings, cut: Any) -> Memory:
        return Memory(cut.micro_batch, {"encoder": BYTES_PER_SLIDE * cut.micro_batch})

    monkeypatch.setattr(fit, "predicted", predicted)


@pytest.mark.usefixtures("a_gigabyte_per_slide")
def test_the_smallest_card_of_the_group_decides_and_only_the_micro_batch_changes(tmp_path: Path) -> None:
    task = attempts.task(tmp_path, batch=16, micro_batch=4)
    fitted, peak = worker.fitted(task, [24e9, 10e9, None], 1)
    assert fitted.settings == replace(task.settings, recipe=replace(task.settings.recipe, micro_batch=8))
    assert peak == 8 * BYTES_PER_SLIDE  # 9 of 10 GB may be used
    assert fitted.order.num_steps == task.order.num_steps


@pytest.mark.usefixtures("a_gigabyte_per_slide")
def test_what_does_not_fit_slide_by_slide_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(
        DoesNotFitError, match=r"2,1 does not fit: one slide at a time needs 1\.0 GB, a card of 1\.0 GB"
    ):
        worker.fitted(attempts.task(tmp_path), [1e9], 1)


def test_without_a_gpu_the_settings_stand(tmp_path: Path) -> None:
    task = attempts.task(tmp_path)
    assert worker.card_bytes(task.settings, torch.device("cpu")) is None
    assert worker.fitted(task, [None, None], 2) == (task, None)


class SmallCard:
    """Raises as a card does that has room for so many slides at once, in the midst of a step."""

    def __init__(self, made: Any, room: int) -> None:
        self.sizes: list[int] = []
        whole = made.learner._backward

        def backward(zoomed: Any, label_B: torch.Tensor, sums: dict[str, float]) -> torch.Tensor:
            self.sizes.append(len(label_B))
            gradient = whole(zoomed, label_B, sums)
            if len(label_B) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return gradient

        made.learner._backward = backward


def run(folder: Path, room: int | None) -> tuple[Any, Any, SmallCard]:
    """A training whose losses depend on no micro-batch: no statistics of batches, no dice."""
    task = attempts.task(folder, batch=4, micro_batch=4, explore_until=0.0, explore_end=0.0)
    model = replace(task.settings.model, classifier=ClassifierConfig(encoder="test_convnext", head="evidence"))
    task = replace(task, settings=replace(task.settings, model=model))
    tracker = attempts.FakeTracker()
    made, stream = attempts.attempt(task, attempts.FakeReader(), tracker)
    card = SmallCard(made, 99 if room is None else room)
    made.run(stream)
    return made, tracker, card


@pytest.mark.slow
def test_running_out_of_memory_halves_the_micro_batch_and_changes_no_loss(tmp_path: Path) -> None:
    _, whole, _ = run(tmp_path / "whole", None)
    made, tracker, card = run(tmp_path / "small", 1)
    assert card.sizes[:6] == [4, 2, 1, 1, 1, 1]  # and never larger again
    assert set(card.sizes[2:]) == {1}
    assert made.learner.optimizer.param_groups[0]["lr"] == pytest.approx(
        whole_rate(made.learner.recipe.learning_rate, made.order.num_steps)
    )
    assert tracker.losses() == pytest.approx(whole.losses(), rel=1e-4)
    assert tracker.tags["memory.micro_batch"] == "1, out of memory with 2"


def test_what_ran_out_of_memory_is_gone_before_more_memory_is_asked_for(tmp_path: Path) -> None:
    """Gradients are summed next, which takes memory on a card that has none left."""
    made, stream = attempts.attempt(
        attempts.task(tmp_path, batch=4, micro_batch=4), attempts.FakeReader(), attempts.FakeTracker()
    )
    learner, failed, alive = made.learner, [], []
    whole, total = learner._backward, learner._sum_gradients

    def backward(zoomed: Any, label_B: torch.Tensor, sums: dict[str, float]) -> torch.Tensor:
        if len(label_B) > 2:
            failed.append(weakref.ref(zoomed.logit_B))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(zoomed, label_B, sums)

    def summed(loss: float, too_large: bool) -> tuple[float, bool]:
        alive.extend(one() is not None for one in failed)
        return total(loss, too_large)

    learner._backward, learner._sum_gradients = backward, summed
    made.run(stream)
    assert alive
    assert not any(alive)


def whole_rate(first: float, num_steps: int) -> float:
    """Of the locators in the last step: twice the classifier's, on the cosine."""
    progress = torch.tensor((num_steps - 1) / num_steps)
    return 2 * first * float(1 + torch.cos(torch.pi * progress)) / 2


def test_a_card_too_small_for_one_slide_ends_the_training_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFitError, match=r"step 0: .* although it has one slide. Take fewer regions"):
        run(tmp_path, 0)
