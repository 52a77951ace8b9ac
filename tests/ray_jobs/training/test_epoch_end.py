"""What is said at the end of an epoch."""

from __future__ import annotations

import pytest

from ray_jobs.training.epoch_end import line, waiting


def test_steps_that_wait_get_advice_only_where_a_finer_cut_helps() -> None:
    [sentence] = waiting({"train/wait_share": 0.13}, in_flight=4, micro_batch=4, per_worker=2)
    for word in ("13%", "has 2 in a step where 4", "recipe.micro_batch (now 4"):
        assert word in sentence
    assert waiting({"train/wait_share": 0.05}, in_flight=4, micro_batch=4, per_worker=2) == []
    assert waiting({"train/wait_share": 0.13}, in_flight=4, micro_batch=2, per_worker=4) == []  # the store is slow
    assert waiting({"train/wait_share": 0.13}, in_flight=4, micro_batch=1, per_worker=2) == []


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({}, "no validation  "),
        ({"val/loss": 0.4}, "no validation AUROC (one class only)"),
        (
            {"val/loss": 0.4, "val/auroc": 0.9, "val/auroc_low": 0.8, "val/auroc_high": 0.95},
            "val AUROC 0.900 [0.800, 0.950]",
        ),
    ],
)
def test_an_epoch_is_a_line(known: dict[str, float], words: str) -> None:
    metrics = {"train/loss": 0.5, "train/slides_per_s": 3.0, "train/wait_share": 0.02} | known
    assert words in line(metrics)
    assert "waiting 2%" in line(metrics)
