"""The planner's command: its numbers, its choice for a GPU, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from magnet.memory import PARTS, StepMemory
from ray_jobs import plan
from ray_jobs.training.memory import fit, plan_report
from service import exit_status


@pytest.fixture(autouse=True)
def a_gigabyte_per_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict_memory(settings: Any, cut: Any) -> StepMemory:
        return StepMemory(cut.micro_batch, dict.fromkeys(PARTS, 0) | {"encoder": 10**9 * cut.micro_batch})

    monkeypatch.setattr(fit, "predict_memory", predict_memory)
    monkeypatch.setattr(plan_report, "predict_memory", predict_memory)
    monkeypatch.setattr(plan, "get_first_gpu_bytes", lambda: None)


SMALL = ["--set", "model.classifier.encoder=test_resnet"]


def test_the_micro_batch_for_a_gpu_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    status = plan.main([*SMALL, "--schedule", "3,2,3", "--gpu-memory", "5GB", "--slides-per-second", "2"])
    printed = capsys.readouterr().out
    assert status == 0
    assert "nodes per layer: 1, 3, 6, 18; 18 last patches of 224 px" in printed
    assert "0.14 h per epoch of 1,000 slides at 2 slides/s" in printed
    assert "GPU of 5.0 GB: micro-batch 4, 4 of them accumulated for the batch of 16; 4.00 GB predicted" in printed
    assert printed.count("too large") == 2  # 16 and 8 slides


def test_without_a_gpu_only_the_table_is_printed_and_a_small_gpu_gets_advice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan.main(SMALL) == 0
    assert "add --gpu-memory 24GB" in capsys.readouterr().out
    assert plan.main([*SMALL, "--gpu-memory", "1"]) == 0
    printed = capsys.readouterr().out
    assert "does not fit: one slide at a time needs 1.0 GB" in printed
    assert "of 1.0 GB has 0.9 GB" in printed


def test_without_arguments_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        plan.main([])
    assert end.value.code == exit_status.USAGE
    assert "Needs no GPU and no slides" in capsys.readouterr().out
