"""Processes die in the midst of a job, and the job goes on where it was."""

from __future__ import annotations

import re
import signal
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq

from tests.flows.harness import FLOW, MANIFEST, Service, Trained, mlflow_client, the_run

pytestmark = FLOW

EPOCHS = 12
"""Enough for a process to be killed in the midst of them."""


def train_words(config: Path, folder: Path) -> list[str | Path]:
    words = ["ray_jobs/train.py", "--manifest", MANIFEST, "--config", config, "--storage", folder]
    return [*words, "--name", "mine", "--epochs", str(EPOCHS)]


def kill_train_worker(service: Service) -> None:
    processes = psutil.Process(service.ray_pid).children(recursive=True)
    [worker] = [process for process in processes if "ray::RayTrainWorker" in " ".join(process.cmdline())]
    worker.kill()


def assert_whole(folder: Path) -> None:
    """One finished run in which each epoch stands once, from one model after the other."""
    run, client = the_run(folder), mlflow_client(folder)
    assert run.info.status == "FINISHED"
    for name in ("train/loss", "val/loss", "step"):
        points = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == list(range(1, EPOCHS + 1)), name


def test_a_killed_worker_is_replaced_and_goes_on_from_the_checkpoint(
    service: Service, config: Path, tmp_path: Path
) -> None:
    """The job is one that brings its own copy of the code."""
    with service.submitted(*train_words(config, tmp_path), options=("--working-dir", ".")) as command:
        command.wait_for(rf"epoch 3/{EPOCHS} ")
        kill_train_worker(service)
        command.finish()
    assert command.status == 0, command.output
    assert re.search(r"going on from the checkpoint after step [1-9]", command.output)
    assert_whole(tmp_path)


def test_a_job_goes_on_after_ctrl_c_and_after_its_driver_was_killed(
    service: Service, config: Path, tmp_path: Path
) -> None:
    words = train_words(config, tmp_path)
    with service.driver(*words) as first:
        first.wait_for(rf"epoch 3/{EPOCHS} ")
        first.process.send_signal(signal.SIGINT)
        assert first.finish(60).status == 130, first.output
    assert "the same command with the same --name goes on" in first.output
    assert not re.search(r"^Traceback", first.output, re.MULTILINE)  # Ray's controller may stumble in its own lines
    run = the_run(tmp_path)
    assert run.info.status == "KILLED"

    with service.driver(*words) as second:
        second.wait_for(rf"epoch \d+/{EPOCHS} ")
        second.process.kill()
    assert re.search(r"going on from the checkpoint after step [1-9]", second.output)

    third = service.run(*words)
    assert third.status == 0, third.output
    assert re.search(r"going on from the checkpoint after step [1-9]", third.output)
    assert the_run(tmp_path).info.run_id == run.info.run_id
    assert_whole(tmp_path)


def test_a_killed_scoring_goes_on_with_the_slides_that_have_no_row_yet(
    service: Service, trained: Trained, new_manifest: tuple[str, pd.DataFrame], tmp_path: Path
) -> None:
    words = ["ray_jobs/score.py", "--manifest", new_manifest[0], "--model", "models:/magnet@challenger"]
    words += ["--storage", str(trained.storage), "--out", str(tmp_path), "--no-pictures"]
    with service.driver(*words) as first:
        first.wait_for(lambda: list(tmp_path.glob("parts/*.parquet")))
        first.process.kill()
    assert not (tmp_path / "scores.parquet").exists()

    second = service.run(*words)
    assert second.status == 3, second.output
    [done] = re.findall(r": (\d+) of 18 slides are done already", second.output)
    assert 0 < int(done) < 18
    parts = [pq.read_table(path)["slide_id"].to_pylist() for path in tmp_path.glob("parts/*.parquet")]
    assert Counter(slide_id for part in parts for slide_id in part) == Counter(new_manifest[1]["slide_id"])
    assert pq.read_table(tmp_path / "scores.parquet")["slide_id"].to_pylist() == list(new_manifest[1]["slide_id"])
