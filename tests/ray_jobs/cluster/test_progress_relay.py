"""The progress of a job on its way from driver and workers to the progress file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_jobs.cluster import connection
from ray_jobs.cluster.progress_relay import make_progress_sink, start_relay
from service.environment import PROGRESS_FILE

ROOT = Path(__file__).parents[3]
JOB = """
import os
import time
import ray
from ray_jobs.cluster import connection
from ray_jobs.cluster.progress_relay import make_progress_sink, start_relay
from service.progress.record import Progress

connection.connect({"PYTHONPATH": os.environ["PYTHONPATH"]})

@ray.remote
def work(relay):
    record = make_progress_sink(relay)
    for step in (1, 2, 3):
        record(Progress(done=step, total=3, activity="training"))

relay = start_relay()
ray.get(work.remote(relay))
deadline = time.monotonic() + 60
# The worker does not wait for its records, and Ray orders the calls of one caller only.
while len(open(os.environ["MAGNET_PROGRESS_FILE"]).readlines()) < 3 and time.monotonic() < deadline:
    time.sleep(0.1)
ray.get(relay.append.remote(Progress(activity="done")))
"""


def test_a_driver_without_a_supervisor_has_no_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROGRESS_FILE, raising=False)
    assert start_relay() is None
    assert make_progress_sink(None) is None


@pytest.mark.flow
def test_records_of_a_worker_arrive_in_order(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    file.touch()
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), PROGRESS_FILE: str(file)}
    subprocess.run([sys.executable, "-c", JOB], env=environment, check=True, timeout=120)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert records == [{"done": step, "total": 3, "activity": "training"} for step in (1, 2, 3)] + [
        {"activity": "done"}
    ]


def test_a_job_that_waits_for_nodes_records_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "progress.jsonl"
    file.touch()
    monkeypatch.setenv(PROGRESS_FILE, str(file))
    monkeypatch.setattr(connection, "placement_group", lambda _: SimpleNamespace(wait=lambda _: True))
    monkeypatch.setattr(connection, "remove_placement_group", lambda _: None)
    connection._wait_for_nodes([{"GPU": 1.0}], "1 GPU (it has 0) for a worker")
    activity = "waiting for the cluster: 1 GPU (it has 0) for a worker; 30 minutes at most"
    assert json.loads(file.read_text()) == {"activity": activity}
