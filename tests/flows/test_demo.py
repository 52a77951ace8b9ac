"""`make demo` on a small cohort: its output and its files, and that Ctrl-C stops all its processes."""

from __future__ import annotations

import csv
import os
import re
import signal
import sqlite3
import time
import uuid
from pathlib import Path

import psutil
import pytest

from ray_jobs import demo
from tests.flows.harness import FLOW, Service, running

pytestmark = [*FLOW, pytest.mark.long]

ARGV = ("python", "-m", "ray_jobs.demo", "--num-slides", "24", "--side-px", "2048", "--set", "recipe.epochs=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture
def shell() -> dict[str, str]:
    """Variables that mark all processes of a command, and hide a cluster that runs at Ray's default address."""
    return {"MAGNET_FLOW": uuid.uuid4().hex, "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}


def left_over(mark: str) -> list[psutil.Process]:
    """Return the processes with that mark that do not end within five seconds."""
    for _ in range(50):
        if not (processes := find_marked(mark)):
            return []
        time.sleep(0.1)
    return processes


def find_marked(mark: str) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MAGNET_FLOW") == mark and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return processes


def test_ctrl_c_during_the_training_leaves_no_process_and_no_running_run(
    folder: Path, shell: dict[str, str], tmp_path: Path
) -> None:
    argv = [*ARGV, "--folder", folder, "--set", "recipe.epochs=1000"]
    with running(argv, shell, tmp_path / "log") as command:
        command.wait_for(r"epoch 2/1000 ", 200)
        started_s = time.monotonic()
        os.killpg(command.process.pid, signal.SIGINT)
        command.finish(60)
        assert command.status == 130
        assert time.monotonic() - started_s < 40  # a few seconds on a free machine
        assert left_over(shell["MAGNET_FLOW"]) == []
        assert "Traceback" not in command.output
    with sqlite3.connect(folder / "runs" / "mlflow.db") as store:
        assert store.execute("SELECT status FROM runs").fetchall() == [("KILLED",)]
    store.close()  # the context above only ends a transaction


def test_the_demo_trains_scores_and_prints_where_its_results_are(
    folder: Path, shell: dict[str, str], tmp_path: Path
) -> None:
    """It reuses the folder of the interrupted demo, if that test ran."""
    with running([*ARGV, "--folder", folder], shell, tmp_path / "log") as command:
        output = command.finish(300).output
        assert command.status == 0, output
        assert left_over(shell["MAGNET_FLOW"]) == []
    for pattern in (
        r"\$ ray job submit -- python ray_jobs/train.py --manifest s3://magnet-demo/cohort/manifest.csv",
        r"epoch 1/1  train loss \d\.\d+  val AUROC",
        r"(\d) slides: \1 scored, 0 refused, 0 failed",
        r"per slide: 10 regions, \d+ requests, \d\.\d\d MB read of \d\.\d\d MB",
        r"AUROC all: \d\.\d{3}, 95 % interval \d\.\d{3} to \d\.\d{3}",
        r"AUROC all +\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\] +\d\.\d{3} \[",
        r"lesion found +\d of 3 +\d of 3",
        r"mlflow ui --backend-store-uri sqlite:///",
    ):
        assert re.search(pattern, output), pattern
    assert not re.search(r"INFO|SUCC|Warning|core_worker|pid=|State API", output), output
    [pictures] = re.findall(r"pictures   (\S+)", output)
    [report] = re.findall(r"report     (\S+)", output)
    assert Path(report).read_text().startswith("<!doctype html>")
    [table] = re.findall(r"table      (\S+)", output)
    rows = list(csv.DictReader(Path(table).read_text().splitlines()))
    assert len(rows) == len(list(Path(pictures).glob("*.jpg"))) >= 4


def test_the_demo_uses_a_cluster_that_the_user_names(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", service.jobs_url)
    with demo._cluster(Path("/nowhere")) as address:
        assert address == service.jobs_url
