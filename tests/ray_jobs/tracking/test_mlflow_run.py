"""The record of a job in a real MLflow store: one run per name, with settings, tags, slides and artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ray_jobs.tracking.mlflow_run import MlflowUnavailableError, SystemMetrics, Tracker, start_run, tracking_uri
from service.cohort.manifest import Manifest, Slide
from service.errors import UsageError


@pytest.mark.slow
def test_all_attempts_of_a_job_share_one_run(uri: str, folder: Path) -> None:
    first, finished = start_run(uri, experiment="attempts", name="night", storage=str(folder))
    assert not finished
    Tracker(uri, first).end("FAILED")
    second, finished = start_run(uri, experiment="attempts", name="night", storage=str(folder))
    assert (second, finished) == (first, False)
    retry = Tracker(uri, second)
    retry.begin()
    assert MlflowClient(uri).get_run(first).info.status == "RUNNING"
    retry.end("FINISHED")
    assert start_run(uri, experiment="attempts", name="night", storage=str(folder)) == (first, True)
    other, _ = start_run(uri, experiment="attempts", name="day", storage=str(folder))
    assert other != first
    (experiment,) = {MlflowClient(uri).get_run(r).info.experiment_id for r in (first, other)}
    assert len(MlflowClient(uri).search_runs([experiment])) == 2


def test_a_run_names_job_code_versions_and_machine(tracker: Tracker) -> None:
    run = tracker.client.get_run(tracker.run_id)
    assert run.info.run_name == "job"
    assert run.data.tags["magnet_job"] == "job"
    assert run.data.tags["version.torch"].count(".") >= 2
    assert {"host", "python", "mlflow.source.git.commit", "mlflow.source.git.dirty"} <= set(run.data.tags)


def test_artifacts_are_in_the_storage_folder(tracker: Tracker, folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("a: 1\n")
    tracker.log_file(config)
    (artifact,) = (folder / "artifacts").rglob(f"{tracker.run_id}/**/config.yaml")
    assert artifact.read_text() == "a: 1\n"


def test_settings_are_logged_and_changed_settings_are_refused(tracker: Tracker) -> None:
    settings = {f"group.key{n}": n for n in range(250)} | {"schedule": "3,2", "weights": None}
    tracker.log_params(settings)
    tracker.log_params(settings)
    params = tracker.client.get_run(tracker.run_id).data.params
    assert params == {name: str(value) for name, value in settings.items()}
    with pytest.raises(UsageError, match=r"schedule = 4 \(was 3,2\), weights = x \(was None\).* another --name"):
        tracker.log_params(settings | {"schedule": "4", "weights": "x"})
    assert tracker.client.get_run(tracker.run_id).data.params == params


def test_compute_settings_may_change_between_attempts(tracker: Tracker) -> None:
    tracker.log_params({"compute.num_workers": 2, "recipe.batch": 8})
    tracker.log_params({"compute.num_workers": 4, "recipe.batch": 8})
    assert tracker.client.get_run(tracker.run_id).data.params == {"compute.num_workers": "2", "recipe.batch": "8"}


def test_an_unreachable_store_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MlflowUnavailableError, match="is unreachable, nothing was started"):
        start_run(f"sqlite:///{tmp_path}/file/mlflow.db", experiment="e", name="n", storage=str(tmp_path))


def test_tags_and_training_slides_are_logged(tracker: Tracker) -> None:
    tracker.set_tags({"preset": "paper"})
    splits = ("train", "train", "test")
    slides = [Slide(row=n, slide_id=f"s{n}", uri=f"{n}", patient_id="p", split=split) for n, split in enumerate(splits)]
    tracker.log_datasets(Manifest(slides=tuple(slides), uri="s3://bucket/cohort.csv", sha256=""))
    run = tracker.client.get_run(tracker.run_id)
    assert run.data.tags["preset"] == "paper"
    (dataset_input,) = run.inputs.dataset_inputs
    assert dataset_input.dataset.name == "cohort-train"
    assert "s3://bucket/cohort.csv" in dataset_input.dataset.source
    assert json.loads(dataset_input.dataset.profile)["num_rows"] == 2
    assert [(tag.key, tag.value) for tag in dataset_input.tags] == [("mlflow.data.context", "train")]


def test_system_metrics_are_logged_only_for_a_tracker(tracker: Tracker) -> None:
    with SystemMetrics(None):
        pass
    with SystemMetrics(tracker) as metrics:
        assert metrics._monitor is not None
    assert metrics._monitor._shutdown_event.is_set()


def test_the_tracking_store_is_the_named_one_or_a_file_in_the_storage_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MAGNET_STORAGE", "s3://bucket/runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(str(tmp_path / "runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    # SQLite cannot be in a bucket, and no folder named "s3:" may appear on disk.
    assert tracking_uri("s3://bucket/runs") == f"sqlite:///{tmp_path}/home/magnet-runs/mlflow.db"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "runs"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri("s3://bucket/runs") == "http://mlflow:5000"
