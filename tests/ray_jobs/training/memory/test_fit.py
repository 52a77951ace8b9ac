"""The GPU memory decides the micro-batch and nothing else; running out of memory makes it smaller, losses stay."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from magnet.config import ClassifierConfig
from magnet.memory import StepMemory
from ray_jobs.training.memory import fit
from ray_jobs.training.memory.fit import DoesNotFitError, fit_to_gpus, get_gpu_budget_bytes
from service.settings.train import TrainSettings
from tests.ray_jobs.training import attempt_rig as attempts

BYTES_PER_SLIDE = 10**9


@pytest.fixture
def a_gigabyte_per_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict_memory(settings: TrainSettings, cut: Any) -> StepMemory:
        return StepMemory(cut.micro_batch, {"encoder": BYTES_PER_SLIDE * cut.micro_batch})

    monkeypatch.setattr(fit, "predict_memory", predict_memory)


@pytest.mark.usefixtures("a_gigabyte_per_slide")
def test_the_smallest_gpu_of_the_group_decides_and_only_the_micro_batch_changes(tmp_path: Path) -> None:
    task = attempts.make_task(tmp_path, batch=16, micro_batch=4)
    fit_task, peak_bytes = fit_to_gpus(task, [24e9, 10e9, None], 1)
    assert fit_task.settings == replace(task.settings, recipe=replace(task.settings.recipe, micro_batch=8))
    assert peak_bytes == 8 * BYTES_PER_SLIDE  # 9 of 10 GB may be used
    assert fit_task.order.num_steps == task.order.num_steps


@pytest.mark.usefixtures("a_gigabyte_per_slide")
def test_a_schedule_that_does_not_fit_with_one_slide_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFitError, match=r"2,1 does not fit: one slide at a time needs 1\.0 GB, a GPU of 1\.0 GB"):
        fit_to_gpus(attempts.make_task(tmp_path), [1e9], 1)


def test_without_a_gpu_the_micro_batch_of_the_settings_is_used(tmp_path: Path) -> None:
    task = attempts.make_task(tmp_path)
    assert get_gpu_budget_bytes(task.settings.compute, torch.device("cpu")) is None
    assert fit_to_gpus(task, [None, None], 2) == (task, None)


class SmallGpu:
    """Raises, in the middle of a step, as a GPU with memory for so many slides at once."""

    def __init__(self, attempt: Any, max_slides: int) -> None:
        self.sizes: list[int] = []
        backward_whole = attempt.learner._backward

        def backward(zoomed: Any, label_B: torch.Tensor, sums: dict[str, float]) -> torch.Tensor:
            self.sizes.append(len(label_B))
            patch_logits = backward_whole(zoomed, label_B, sums)
            if len(label_B) > max_slides:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return patch_logits

        attempt.learner._backward = backward


def run(folder: Path, max_slides: int | None) -> tuple[Any, Any, SmallGpu]:
    """Run a training whose losses depend on no micro-batch: without batch statistics and random regions."""
    task = attempts.make_task(folder, batch=4, micro_batch=4, explore_until=0.0, explore_end=0.0)
    model = replace(task.settings.model, classifier=ClassifierConfig(encoder="test_convnext", head="evidence"))
    task = replace(task, settings=replace(task.settings, model=model))
    tracker = attempts.FakeTracker()
    attempt, stream = attempts.make_attempt(task, attempts.FakeReader(), tracker)
    gpu = SmallGpu(attempt, 99 if max_slides is None else max_slides)
    attempt.run(stream)
    return attempt, tracker, gpu


@pytest.mark.slow
def test_running_out_of_memory_halves_the_micro_batch_and_changes_no_loss(tmp_path: Path) -> None:
    _, whole, _ = run(tmp_path / "whole", None)
    attempt, tracker, gpu = run(tmp_path / "small", 1)
    assert gpu.sizes[:6] == [4, 2, 1, 1, 1, 1]
    assert set(gpu.sizes[2:]) == {1}  # it never becomes larger again
    assert attempt.learner.optimizer.param_groups[0]["lr"] == pytest.approx(
        last_locator_rate(attempt.learner.recipe.learning_rate, attempt.order.num_steps)
    )
    assert tracker.losses() == pytest.approx(whole.losses(), rel=1e-4)
    assert tracker.tags["memory.micro_batch"] == "1, out of memory with 2"


def test_a_zoom_that_ran_out_of_memory_is_freed_before_gradients_are_summed(tmp_path: Path) -> None:
    """Summing them takes memory, on a GPU that has none left."""
    attempt, stream = attempts.make_attempt(
        attempts.make_task(tmp_path, batch=4, micro_batch=4), attempts.FakeReader(), attempts.FakeTracker()
    )
    learner, failed, alive = attempt.learner, [], []
    backward_whole, sum_gradients = learner._backward, learner._sum_gradients

    def backward(zoomed: Any, label_B: torch.Tensor, sums: dict[str, float]) -> torch.Tensor:
        if len(label_B) > 2:
            failed.append(weakref.ref(zoomed.logit_B))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward_whole(zoomed, label_B, sums)

    def check_and_sum(loss: float, too_large: bool) -> tuple[float, bool]:
        alive.extend(reference() is not None for reference in failed)
        return sum_gradients(loss, too_large)

    learner._backward, learner._sum_gradients = backward, check_and_sum
    attempt.run(stream)
    assert alive
    assert not any(alive)


def last_locator_rate(first: float, num_steps: int) -> float:
    """Return the locators' learning rate in the last step: twice the classifier's, on the cosine."""
    progress = torch.tensor((num_steps - 1) / num_steps)
    return 2 * first * float(1 + torch.cos(torch.pi * progress)) / 2


def test_a_gpu_too_small_for_one_slide_ends_the_training_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFitError, match=r"step 0: .* although it has one slide. Take fewer regions"):
        run(tmp_path, 0)
