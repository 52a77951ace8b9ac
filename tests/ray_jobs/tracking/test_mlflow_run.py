"""The record of a job in a real MLflow store: one run per name, nothing lost and nothing doubled while it is away."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ray_jobs.tracking import mlflow_run
from ray_jobs.tracking.mlflow_run import RecordError, SystemMetrics, Tracker, start_run, tracking_uri
from service.cohort.manifest import Manifest, Slide
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


@pytest.mark.slow
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


def test_what_changes_no_result_may_change_between_attempts(tracker: Tracker) -> None:
    tracker.params({"compute.num_workers": 2, "recipe.batch": 8})
    tracker.params({"compute.num_workers": 4, "recipe.batch": 8})
    assert tracker.client.get_run(tracker.run_id).data.params == {"compute.num_workers": "2", "recipe.batch": "8"}


def metrics_of(tracker: Tracker, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracker.client.get_metric_history(tracker.run_id, name)]


def test_metrics_are_sent_with_their_steps(tracker: Tracker) -> None:
    for epoch in (1, 2, 3):
        tracker.metrics({"loss": 1.0 / epoch, "auroc": 0.5}, step=epoch)
    assert metrics_of(tracker, "loss") == []
    assert tracker.flush()
    assert metrics_of(tracker, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_more_metrics_than_one_message_takes(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_run, "MAX_BATCH", 7)
    for epoch in range(1, 21):
        tracker.metrics({"loss": float(epoch)}, step=epoch)
    assert tracker.flush()
    assert metrics_of(tracker, "loss") == [(epoch, float(epoch)) for epoch in range(1, 21)]


def test_an_attempt_that_goes_on_logs_no_epoch_twice(tracker: Tracker) -> None:
    for epoch in (1, 2):
        tracker.metrics({"loss": float(epoch), "step": 10.0 * epoch}, step=epoch)
    tracker.flush()
    later = Tracker(tracker.uri, tracker.run_id)
    for epoch in (2, 3):  # it goes on from the checkpoint of epoch 1
        later.metrics({"loss": 100.0 * epoch, "step": 10.0 * epoch}, step=epoch)
    later.flush()
    assert metrics_of(tracker, "loss") == [(1, 1.0), (2, 2.0), (3, 300.0)]


@contextmanager
def away(folder: Path) -> Iterator[None]:
    """Context in which the store takes no metrics. A lock on the file would take MLflow 20 seconds to notice."""
    with sqlite3.connect(folder / "mlflow.db") as store:
        store.execute("ALTER TABLE metrics RENAME TO away")
        store.commit()
        try:
            yield
        finally:
            store.execute("ALTER TABLE away RENAME TO metrics")
    store.close()


def test_metrics_are_kept_while_the_store_is_away_and_sent_later(
    tracker: Tracker, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker.metrics({"loss": 3.0}, step=1)
    with away(folder), caplog.at_level(logging.WARNING, logger=mlflow_run.__name__):
        assert not tracker.flush()
        assert not tracker.flush()
        assert caplog.text.count("is away, notes are kept and the job goes on") == 1
        tracker.metrics({"loss": 2.0}, step=2)
        assert not tracker.recovered()
    assert tracker.flush()
    assert tracker.recovered()
    assert not tracker.recovered()
    assert tracker.flush()  # nothing is sent twice
    assert metrics_of(tracker, "loss") == [(1, 3.0), (2, 2.0)]


def test_notes_of_an_attempt_that_died_while_the_store_was_away_are_sent_by_the_next(
    tracker: Tracker, folder: Path, tmp_path: Path
) -> None:
    first = Tracker(tracker.uri, tracker.run_id, str(tmp_path))
    first.metrics({"loss": 4.0}, step=1)
    assert first.flush()
    with away(folder):
        first.metrics({"loss": 3.0, "auroc": 0.5}, step=2)
        first.note_tags({"quarantined": "a"})
        first.note_text("slide_id\na\n", "quarantine.csv")
        first.keep()
        assert (tmp_path / mlflow_run.UNSENT_FILE).exists()
        second = Tracker(tracker.uri, tracker.run_id, str(tmp_path))
        second.resume()
        second.metrics({"loss": 3.0, "auroc": 0.5}, step=2)  # it goes on from a checkpoint before that step
        second.metrics({"loss": 2.0}, step=3)
        assert not second.flush()
    second.keep()
    assert metrics_of(tracker, "loss") == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert metrics_of(tracker, "auroc") == [(2, 0.5)]
    assert tracker.client.get_run(tracker.run_id).data.tags["quarantined"] == "a"
    assert Path(tracker.client.download_artifacts(tracker.run_id, "quarantine.csv")).read_text() == "slide_id\na\n"
    assert not (tmp_path / mlflow_run.UNSENT_FILE).exists()


def test_a_message_that_arrived_and_whose_answer_was_lost_is_not_doubled(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = tracker.client.log_batch

    def arrives(*args: object, **options: object) -> None:
        send(*args, **options)  # type: ignore[arg-type]
        raise OSError("connection reset")

    tracker.metrics({"loss": 1.0}, step=1)
    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "log_batch", arrives)
        assert not tracker.flush()
    tracker.metrics({"loss": 2.0}, step=2)
    assert tracker.flush()
    assert metrics_of(tracker, "loss") == [(1, 1.0), (2, 2.0)]


def test_sending_holds_nobody_up(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs: the thread that trains goes on, and a checkpoint waits for a moment only."""
    free, hanging = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        hanging.set()
        free.wait(60)
        raise OSError("timed out")

    monkeypatch.setattr(mlflow_run, "KEEP_S", 0.05)
    monkeypatch.setattr(tracker.client, "log_batch", hang)
    tracker.metrics({"loss": 1.0}, step=1)
    tracker.send()
    assert hanging.wait(10)
    tracker.metrics({"loss": 2.0}, step=2)
    tracker.send()
    tracker.keep()
    free.set()


def test_a_store_that_cannot_be_had_at_the_start_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be had, nothing was started"):
        start_run(f"sqlite:///{tmp_path}/file/mlflow.db", experiment="e", name="n", storage=str(tmp_path))


def test_what_is_pending_is_sent_at_the_end(tracker: Tracker) -> None:
    tracker.metrics({"loss": 3.0}, step=1)
    tracker.end("FINISHED")
    assert metrics_of(tracker, "loss") == [(1, 3.0)]
    assert tracker.client.get_run(tracker.run_id).info.status == "FINISHED"


def test_tags_and_slides(tracker: Tracker) -> None:
    tracker.tags({"preset": "paper"})
    splits = ("train", "train", "test")
    slides = [Slide(row=n, slide_id=f"s{n}", uri=f"{n}", patient_id="p", split=split) for n, split in enumerate(splits)]
    tracker.datasets(Manifest(slides=tuple(slides), uri="s3://bucket/cohort.csv", sha256=""))
    run = tracker.client.get_run(tracker.run_id)
    assert run.data.tags["preset"] == "paper"
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == "cohort-train"
    assert "s3://bucket/cohort.csv" in used.dataset.source
    assert json.loads(used.dataset.profile)["num_rows"] == 2
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
