"""The record of a job in a real MLflow store (SQLite): one run per name, nothing lost while the store is away."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from ray_jobs import tracking
from ray_jobs.tracking import SystemMetrics, Tracker, git_tags, start_run, tracking_uri
from service.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the store, which takes seconds to make; experiments keep the tests apart."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def tracker(uri: str, folder: Path, request: pytest.FixtureRequest) -> Tracker:
    run_id, _ = start_run(uri, experiment=request.node.name, name="job", storage=str(folder))
    return Tracker(uri, run_id)


def test_one_run_per_name_over_attempts(uri: str, folder: Path) -> None:
    first, finished = start_run(uri, experiment="attempts", name="night", storage=str(folder))
    assert not finished
    Tracker(uri, first).end("FAILED")
    second, finished = start_run(uri, experiment="attempts", name="night", storage=str(folder))
    assert (second, finished) == (first, False)
    again = Tracker(uri, second)
    again.begin()
    assert MlflowClient(uri).get_run(first).info.status == "RUNNING"
    again.end("FINISHED")
    assert start_run(uri, experiment="attempts", name="night", storage=str(folder)) == (first, True)
    other, _ = start_run(uri, experiment="attempts", name="day", storage=str(folder))
    assert other != first
    (experiment,) = {MlflowClient(uri).get_run(r).info.experiment_id for r in (first, other)}
    assert len(MlflowClient(uri).search_runs([experiment])) == 2


def test_a_run_is_told_by_name_code_versions_and_machine(tracker: Tracker) -> None:
    run = tracker.client.get_run(tracker.run_id)
    assert run.info.run_name == "job"
    assert run.data.tags["magnet_job"] == "job"
    assert run.data.tags["version.torch"].count(".") >= 2
    assert {"host", "python", "mlflow.source.git.commit", "mlflow.source.git.dirty"} <= set(run.data.tags)


def test_artifacts_lie_in_the_storage_folder(tracker: Tracker, folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("a: 1\n")
    tracker.file(config)
    (kept,) = (folder / "artifacts").rglob(f"{tracker.run_id}/**/config.yaml")
    assert kept.read_text() == "a: 1\n"


def test_settings_are_kept_and_changed_ones_refused(tracker: Tracker) -> None:
    settings = {f"group.key{n}": n for n in range(250)} | {"schedule": "3,2", "weights": None}
    tracker.params(settings)
    tracker.params(settings)
    kept = tracker.client.get_run(tracker.run_id).data.params
    assert kept == {name: str(value) for name, value in settings.items()}
    with pytest.raises(UsageError, match=r"schedule = 4 \(was 3,2\), weights = x \(was None\).* --name of its own"):
        tracker.params(settings | {"schedule": "4", "weights": "x"})
    assert tracker.client.get_run(tracker.run_id).data.params == kept


def metrics_of(tracker: Tracker, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracker.client.get_metric_history(tracker.run_id, name)]


def test_metrics_are_sent_with_their_steps(tracker: Tracker) -> None:
    for epoch in (1, 2, 3):
        tracker.metrics({"loss": 1.0 / epoch, "auroc": 0.5}, step=epoch)
    assert metrics_of(tracker, "loss") == []
    assert tracker.flush()
    assert metrics_of(tracker, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_more_metrics_than_one_message_takes(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "MAX_BATCH", 7)
    for epoch in range(1, 21):
        tracker.metrics({"loss": float(epoch)}, step=epoch)
    assert tracker.flush()
    assert metrics_of(tracker, "loss") == [(epoch, float(epoch)) for epoch in range(1, 21)]


def test_an_attempt_that_goes_on_logs_no_epoch_twice(tracker: Tracker) -> None:
    for epoch in (1, 2):
        tracker.metrics({"loss": float(epoch), "step": 10.0 * epoch}, step=epoch)
    tracker.flush()
    later = Tracker(tracker.uri, tracker.run_id)
    later.resume()
    for epoch in (2, 3):  # it goes on from the checkpoint of epoch 1
        later.metrics({"loss": 100.0 * epoch, "step": 10.0 * epoch}, step=epoch)
    later.flush()
    assert metrics_of(tracker, "loss") == [(1, 1.0), (2, 2.0), (3, 300.0)]


def test_metrics_are_kept_while_the_store_is_away_and_sent_later(
    tracker: Tracker, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker.metrics({"loss": 3.0}, step=1)
    with sqlite3.connect(folder / "mlflow.db") as store:  # a lock on the file would take MLflow 20 seconds to notice
        store.execute("ALTER TABLE metrics RENAME TO away")
        store.commit()
        with caplog.at_level(logging.WARNING, logger=tracking.__name__):
            assert not tracker.flush()
        assert "did not take 1 metrics, kept for later" in caplog.text
        tracker.metrics({"loss": 2.0}, step=2)
        store.execute("ALTER TABLE away RENAME TO metrics")
    store.close()
    assert tracker.flush()
    assert tracker.flush()  # nothing is sent twice
    assert metrics_of(tracker, "loss") == [(1, 3.0), (2, 2.0)]


def test_what_is_pending_is_sent_at_the_end(tracker: Tracker) -> None:
    tracker.metrics({"loss": 3.0}, step=1)
    tracker.end("FINISHED")
    assert metrics_of(tracker, "loss") == [(1, 3.0)]
    assert tracker.client.get_run(tracker.run_id).info.status == "FINISHED"


def test_tags_and_tables(tracker: Tracker) -> None:
    tracker.tags({"preset": "paper"})
    frame = pd.DataFrame({"slide_id": ["a", "b"], "label": [0, 1]})
    tracker.dataset(frame, source="s3://bucket/cohort.csv", name="cohort-train", context="train")
    run = tracker.client.get_run(tracker.run_id)
    assert run.data.tags["preset"] == "paper"
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == "cohort-train"
    assert "s3://bucket/cohort.csv" in used.dataset.source
    assert len(used.dataset.digest) > 0
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "train")]


def test_load_of_the_machine_is_watched_only_for_a_tracker(tracker: Tracker) -> None:
    with SystemMetrics(None):
        pass
    with SystemMetrics(tracker) as watching:
        assert watching._monitor is not None
    assert watching._monitor._shutdown_event.is_set()


def test_the_store_is_the_one_named_or_a_file_beside_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MAGNET_STORAGE", "s3://bucket/runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(str(tmp_path / "runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    # SQLite cannot lie in a bucket, nor in a folder that is named like one
    assert tracking_uri("s3://bucket/runs") == f"sqlite:///{tmp_path}/home/magnet-runs/mlflow.db"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "runs"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri("s3://bucket/runs") == "http://mlflow:5000"


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_and_whether_files_were_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_tags(tmp_path) == {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": "false"}
    (tmp_path / "a").write_text("2")
    assert git_tags(tmp_path)["mlflow.source.git.dirty"] == "true"


def test_without_git_the_commit_is_what_the_image_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("MAGNET_GIT_COMMIT", raising=False)
    assert git_tags(tmp_path)["mlflow.source.git.commit"] == "unknown"
    monkeypatch.setenv("MAGNET_GIT_COMMIT", "abc123")
    assert git_tags(tmp_path) == {"mlflow.source.git.commit": "abc123", "mlflow.source.git.dirty": "false"}
    monkeypatch.setenv("PATH", str(tmp_path))  # not even the program
    assert git_tags(tmp_path)["mlflow.source.git.commit"] == "abc123"
