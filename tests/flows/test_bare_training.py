"""A training that is a process, without Ray, on a store that is one: what an outage and a notice to leave cost it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.checkpoint_store import CheckpointStore
from tests.flows.harness import EPOCHS, FLOW, SAME, STEPS_PER_EPOCH, Command, running
from tests.flows.training_process import PREEMPTED

pytestmark = [*FLOW, pytest.mark.long]

NEVER = 1e9
"""Minutes between checkpoints within an epoch."""


def said(command: Command) -> list[dict[str, Any]]:
    """All steps and epochs of a training so far, an epoch's metrics without those that a clock made."""
    found = [json.loads(line) for line in command.output.splitlines() if line.startswith("{") and line.endswith("}")]
    return [about if "step" in about else {name: about[name] for name in SAME if name in about} for about in found]


def reach(command: Command, step: int) -> None:
    """Wait until a step is done."""
    command.wait_for(rf'(?m)^{{"step": {step},')


@contextmanager
def training(manifest: object, folder: object, minutes: float, log: Path, **node: str) -> Iterator[Command]:
    """A training that runs while the context lasts."""
    words = ["python", "-m", "tests.flows.training_process", str(manifest), str(folder), str(minutes)]
    with running(words, node, log) as command:
        yield command


def test_asked_to_leave_it_saves_the_step_at_hand_and_the_next_attempt_goes_on_exactly(
    cohort: Path, tmp_path: Path
) -> None:
    manifest, folder = cohort / "manifest.csv", tmp_path / "job"
    with training(manifest, tmp_path / "whole", NEVER, tmp_path / "whole.log") as whole:
        with training(manifest, folder, NEVER, tmp_path / "first.log") as first:
            reach(first, 2)
            first.process.send_signal(signal.SIGTERM)
            assert first.finish().status == PREEMPTED, first.output
        steps = [about["step"] for about in said(first) if "step" in about]
        assert steps[-1] < EPOCHS * STEPS_PER_EPOCH
        assert CheckpointStore(str(folder)).published()[-1].step == steps[-1]  # nothing is done twice
        with training(manifest, folder, NEVER, tmp_path / "second.log") as second:
            assert second.finish().status == 0, second.output
        assert whole.finish().status == 0, whole.output
    assert len(said(whole)) == EPOCHS * STEPS_PER_EPOCH + EPOCHS
    assert said(first) + said(second) == said(whole)
