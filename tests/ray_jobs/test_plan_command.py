"""The planner's command: its numbers in words, its choice for a card, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from magnet.memory import PARTS, Memory
from ray_jobs import plan
from ray_jobs.command_line import command
from ray_jobs.training import fit
from service import exit_status
from service.errors import UsageError


@pytest.fixture(autouse=True)
def a_gigabyte_per_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict_memory(settings: Any, cut: Any) -> Memory:
        return Memory(cut.micro_batch, dict.fromkeys(PARTS, 0) | {"encoder": 10**9 * cut.micro_batch})

    monkeypatch.setattr(fit, "predict_memory", predict_memory)
    monkeypatch.setattr(plan, "predict_memory", predict_memory)
    monkeypatch.setattr(plan, "get_first_gpu_bytes", lambda: None)


SMALL = ["--set", "model.classifier.encoder=test_resnet"]


def test_a_card_is_told_its_micro_batch_and_how_many_make_the_batch(capsys: pytest.CaptureFixture[str]) -> None:
    status = plan.main([*SMALL, "--schedule", "3,2,3", "--gpu-memory", "5GB", "--slides-per-second", "2"])
    told = capsys.readouterr().out
    assert status == 0
    assert "nodes per layer: 1, 3, 6, 18; 18 last patches of 224 px" in told
    assert "0.14 h per epoch of 1,000 slides at 2 slides/s" in told
    assert "card of 5.0 GB: micro-batch 4, 4 of them accumulated for the batch of 16; 4.00 GB predicted" in told
    assert told.count("too large") == 2  # 16 and 8 slides


def test_without_a_card_the_table_stands_alone_and_one_too_small_gets_advice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan.main(SMALL) == 0
    assert "add --gpu-memory 24GB" in capsys.readouterr().out
    assert plan.main([*SMALL, "--gpu-memory", "1"]) == 0
    assert "does not fit: one slide at a time needs 1.0 GB, a GPU of 1.0 GB has 0.9 GB" in capsys.readouterr().out


def test_without_arguments_it_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([]) == exit_status.USAGE
    assert "no GPU and no slides are needed" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "lots", "0GB", "24MB"])
def test_gigabytes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="for example 24GB"):
        command.gigabytes(text)


def test_gigabytes_in_words() -> None:
    assert [command.gigabytes(text) for text in ("24GB", "40", "11.5 gb")] == [24, 40, 11.5]
