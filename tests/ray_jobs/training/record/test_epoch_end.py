"""Warnings and the line of text at the end of an epoch."""

from __future__ import annotations

import pytest

from ray_jobs.training.record.epoch_end import advise_on_waiting, format_epoch


def test_waiting_steps_get_advice_only_where_smaller_micro_batches_help() -> None:
    [sentence] = advise_on_waiting({"train/wait_share": 0.13}, in_flight=4, micro_batch=4, per_worker=2)
    for part in ("13%", "has 2 in a step where 4", "recipe.micro_batch (now 4"):
        assert part in sentence
    assert advise_on_waiting({"train/wait_share": 0.05}, in_flight=4, micro_batch=4, per_worker=2) == []
    assert (
        advise_on_waiting({"train/wait_share": 0.13}, in_flight=4, micro_batch=2, per_worker=4) == []
    )  # the store is slow: no cut of the batch helps
    assert advise_on_waiting({"train/wait_share": 0.13}, in_flight=4, micro_batch=1, per_worker=2) == []


@pytest.mark.parametrize(
    ("validation", "text"),
    [
        ({}, "no validation  "),
        ({"val/loss": 0.4}, "no validation AUROC (one class only)"),
        (
            {"val/loss": 0.4, "val/auroc": 0.9, "val/auroc_low": 0.8, "val/auroc_high": 0.95},
            "val AUROC 0.900 [0.800, 0.950]",
        ),
    ],
)
def test_the_line_of_an_epoch_has_its_scores_and_waits(validation: dict[str, float], text: str) -> None:
    metrics = {"train/loss": 0.5, "train/slides_per_s": 3.0, "train/wait_share": 0.02} | validation
    assert text in format_epoch(metrics)
    assert "waiting 2%" in format_epoch(metrics)
