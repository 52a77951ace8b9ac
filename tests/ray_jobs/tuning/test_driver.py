"""The trials of a search, without Ray: their records, also when memory runs out, and the best config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient

from ray_jobs.tracking import mlflow_run
from ray_jobs.training.learner import Learner
from ray_jobs.tuning import driver, trial
from ray_jobs.tuning.search_task import SearchTask
from service.cohort.manifest import Manifest
from service.settings.train import read_train_settings
from service.settings.tune import SearchSettings
from tests.ray_jobs.training import attempt_rig as attempts

SLIDES = tuple(replace(attempts.make_slide(n), split="train" if n < 6 else "val") for n in range(8))


@dataclass
class FakeTune:
    """Replaces Ray Tune within the process of a trial."""

    trial: str
    reports: list[dict[str, Any]]

    def get_context(self) -> FakeTune:
        return self

    def get_trial_id(self) -> str:
        return self.trial

    def report(self, metrics: dict[str, Any]) -> None:
        self.reports.append(metrics)


@dataclass
class FakeResult:
    """The result that Tune has of a trial."""

    error: Exception | None = None


class Reader(attempts.FakeReader):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None: ...


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchTask:
    monkeypatch.setattr(trial, "RegionReader", Reader)
    monkeypatch.setattr(mlflow_run.SystemMetrics, "renew", lambda self: None)  # MLflow's monitor starts threads
    base = replace(attempts.make_task(tmp_path).settings, experiment="search")
    uri = f"sqlite:///{tmp_path}/mlflow.db"  # not the one in MLFLOW_TRACKING_URI, which MLflow itself sets
    parent, _ = mlflow_run.start_run(uri, experiment="search", name="hunt", storage=str(tmp_path))
    manifest = Manifest(uri="m.csv", sha256="0" * 64, slides=SLIDES)
    return SearchTask("hunt", base, SearchSettings(), manifest, uri, parent, str(tmp_path))


def run(search: SearchTask, name: str, schedule: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Run a trial to its end; return its reports."""
    fake = FakeTune(name, [])
    monkeypatch.setattr(trial, "tune", fake)
    trial.run_trial({"schedule": schedule}, search)
    return fake.reports


@pytest.mark.slow
def test_a_trial_out_of_memory_is_recorded_and_the_best_of_the_others_is_delivered(
    search: SearchTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = run(search, "t1", "1,1", monkeypatch)
    assert [report["epoch"] for report in reports] == [1, 2, 3]  # ASHA ends it after its last report
    assert reports[-1]["objective"] in [report["objective"] for report in reports[:2]]

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_backward", full)
        [report] = run(search, "t2", "2,2", monkeypatch)
    assert report == {"epoch": 3, "objective": trial.WORST}
    assert run(search, "t3", "1,1", monkeypatch) == reports[-1:]  # the same values again: nothing is trained

    client = MlflowClient(tracking_uri=search.tracking_uri)
    first, _ = mlflow_run.start_run(search.tracking_uri, experiment="search", name="hunt-t1", storage=search.storage)
    client.update_run(first, status="RUNNING")  # as if it had been killed before it closed its run
    results: dict[str, Any] = {name: FakeResult() for name in ("t1", "t2")}
    outcomes = driver._collect_outcomes(search, results)
    assert [(outcome.trial, outcome.status) for outcome in outcomes] == [("t1", "complete"), ("t2", "does not fit")]
    assert "although it has one slide" in outcomes[1].reason
    driver._deliver(mlflow_run.Tracker(search.tracking_uri, search.parent_run), search, outcomes)

    written = Path(search.storage) / "hunt" / "best.yaml"
    best = read_train_settings(str(written))
    assert best.model.zoom.schedule == (1, 1)
    assert replace(best, model=search.base.model) == search.base
    assert yaml.safe_load(written.read_text())["model"]["zoom"]["schedule"] == [1, 1]
    parent = client.get_run(search.parent_run)
    artifacts = {artifact.path for artifact in client.list_artifacts(search.parent_run)}
    assert artifacts == {"trials.csv", "front.png", "best.yaml"}
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{search.parent_run}'")
    assert {run.data.tags["trial"]: run.data.tags["outcome"] for run in children} == {
        "t1": "complete",
        "t2": "does not fit",
    }
    assert {run.info.status for run in children} == {"FINISHED"}
    assert len({frozenset(run.data.params) for run in children}) == 1  # MLflow compares runs with the same keys


@pytest.mark.slow
def test_a_trial_that_was_stopped_is_closed_with_the_metrics_of_its_best_epoch(
    search: SearchTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(BaseException): ...

    class Stopping(FakeTune):
        def report(self, metrics: dict[str, Any]) -> None:
            super().report(metrics)
            raise Stopped

    fake = Stopping("t1", [])
    monkeypatch.setattr(trial, "tune", fake)
    with pytest.raises(Stopped):
        trial.run_trial({"schedule": "1,1"}, search)
    results: Any = {"t1": FakeResult()}
    [outcome] = driver._collect_outcomes(search, results)
    assert (outcome.status, outcome.objective) == ("stopped early", fake.reports[0]["objective"])
