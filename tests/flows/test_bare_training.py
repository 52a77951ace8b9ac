"""A training that is a process, without Ray, on a store that is one: what an outage and a notice to leave cost it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.cluster.processes import free_port
from ray_jobs.models.checkpoint_store import CheckpointStore
from tests.flows.harness import BUCKET, EPOCHS, FLOW, SAME, STEPS_PER_EPOCH, Command, running
from tests.flows.training_process import PREEMPTED

pytestmark = [*FLOW, pytest.mark.long]

NEVER, EVERY_STEP = 1e9, 1e-9
"""Minutes between checkpoints within an epoch."""
OUTAGE_S = 60


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


@pytest.mark.timeout(900)
def test_a_store_that_refuses_for_a_minute_and_hangs_for_another_costs_the_time_alone(
    cohort: Path, tmp_path: Path
) -> None:
    """Slides, checkpoints and their listing lie in it; each step reads and saves."""
    port = free_port()
    bucket = tmp_path / "bucket"
    shutil.copytree(cohort, bucket / "cohort")
    node = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    manifest = f"s3://{BUCKET}/cohort/manifest.csv"
    words = ["python", "-m", "service.testing.fake_store", bucket, "--port", str(port), "--bucket", BUCKET]
    with running(words, {}, tmp_path / "store.log") as store:
        store.wait_for("^http")
        with training(manifest, f"s3://{BUCKET}/whole", EVERY_STEP, tmp_path / "whole.log", **node) as whole:
            assert whole.finish().status == 0, whole.output
        with training(manifest, f"s3://{BUCKET}/job", EVERY_STEP, tmp_path / "job.log", **node) as job:
            for step, out, back in ((2, signal.SIGUSR1, signal.SIGUSR1), (9, signal.SIGSTOP, signal.SIGCONT)):
                reach(job, step)
                store.process.send_signal(out)
                time.sleep(OUTAGE_S)
                assert len(said(job)) < step + 4  # it could not go on without
                store.process.send_signal(back)
            assert job.finish().status == 0, job.output
    assert said(job) == said(whole)
    assert "warning" not in job.output  # no checkpoint was done without
    kept = [
        [(one.step, one.selection) for one in CheckpointStore(str(bucket / name)).published()]
        for name in ("job", "whole")
    ]
    assert kept[0] == kept[1]
