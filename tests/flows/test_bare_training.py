"""A training without Ray, as a process: what a preemption and an outage of the object store cost it."""

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


def logged(command: Command) -> list[dict[str, Any]]:
    """Return all steps and epochs of a training so far, without metrics that depend on time."""
    records = [json.loads(line) for line in command.output.splitlines() if line.startswith("{") and line.endswith("}")]
    return [
        record if "step" in record else {name: record[name] for name in SAME if name in record} for record in records
    ]


def reach(command: Command, step: int) -> None:
    """Wait until a step is done."""
    command.wait_for(rf'(?m)^{{"step": {step},')


@contextmanager
def training(manifest: object, folder: object, minutes: float, log: Path, **node: str) -> Iterator[Command]:
    """Run a training while the context lasts."""
    argv = ["python", "-m", "tests.flows.training_process", str(manifest), str(folder), str(minutes)]
    with running(argv, node, log) as command:
        yield command


def test_a_preempted_training_saves_its_last_step_and_the_next_attempt_continues_exactly(
    cohort: Path, tmp_path: Path
) -> None:
    manifest, folder = cohort / "manifest.csv", tmp_path / "job"
    with training(manifest, tmp_path / "whole", NEVER, tmp_path / "whole.log") as whole:
        with training(manifest, folder, NEVER, tmp_path / "first.log") as first:
            reach(first, 2)
            first.process.send_signal(signal.SIGTERM)
            assert first.finish().status == PREEMPTED, first.output
        steps = [record["step"] for record in logged(first) if "step" in record]
        assert steps[-1] < EPOCHS * STEPS_PER_EPOCH
        assert CheckpointStore(str(folder)).list_published()[-1].step == steps[-1]  # nothing is done twice
        with training(manifest, folder, NEVER, tmp_path / "second.log") as second:
            assert second.finish().status == 0, second.output
        assert whole.finish().status == 0, whole.output
    assert len(logged(whole)) == EPOCHS * STEPS_PER_EPOCH + EPOCHS
    assert logged(first) + logged(second) == logged(whole)


@pytest.mark.timeout(900)
def test_a_store_that_refuses_requests_and_hangs_for_a_minute_each_costs_only_time(
    cohort: Path, tmp_path: Path
) -> None:
    """Slides and checkpoints are in the store; each step reads and saves."""
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
    argv = ["python", "-m", "service.testing.fake_store", bucket, "--port", str(port), "--bucket", BUCKET]
    with running(argv, {}, tmp_path / "store.log") as store:
        store.wait_for("^http")
        with training(manifest, f"s3://{BUCKET}/whole", EVERY_STEP, tmp_path / "whole.log", **node) as whole:
            assert whole.finish().status == 0, whole.output
        with training(manifest, f"s3://{BUCKET}/job", EVERY_STEP, tmp_path / "job.log", **node) as job:
            for step, stop, restart in ((2, signal.SIGUSR1, signal.SIGUSR1), (9, signal.SIGSTOP, signal.SIGCONT)):
                reach(job, step)
                store.process.send_signal(stop)
                time.sleep(OUTAGE_S)
                assert len(logged(job)) < step + 4  # it cannot continue without the store
                store.process.send_signal(restart)
            assert job.finish().status == 0, job.output
    assert logged(job) == logged(whole)
    assert "warning" not in job.output  # no checkpoint was skipped
    checkpoints = [
        [(checkpoint.step, checkpoint.selection) for checkpoint in CheckpointStore(str(bucket / name)).list_published()]
        for name in ("job", "whole")
    ]
    assert checkpoints[0] == checkpoints[1]
