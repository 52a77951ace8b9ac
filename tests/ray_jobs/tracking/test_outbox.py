"""The outbox of a run in a real MLflow store: nothing is lost or logged twice while the store is unreachable."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ray_jobs.tracking import outbox
from ray_jobs.tracking.mlflow_run import Tracker
from ray_jobs.tracking.outbox import OUTBOX_FILE


def logged(tracker: Tracker, name: str) -> list[tuple[int, float]]:
    """All points of a metric that MLflow has."""
    return [(point.step, point.value) for point in tracker.client.get_metric_history(tracker.run_id, name)]


@contextmanager
def unreachable(folder: Path) -> Iterator[None]:
    """Context in which the store refuses metrics. (MLflow would need 20 seconds to notice a locked file.)"""
    with sqlite3.connect(folder / "mlflow.db") as store:
        store.execute("ALTER TABLE metrics RENAME TO hidden")
        store.commit()
        try:
            yield
        finally:
            store.execute("ALTER TABLE hidden RENAME TO metrics")
    store.close()


def test_metrics_are_sent_with_their_steps(tracker: Tracker) -> None:
    for epoch in (1, 2, 3):
        tracker.log_metrics({"loss": 1.0 / epoch, "auroc": 0.5}, step=epoch)
    assert logged(tracker, "loss") == []
    assert tracker.flush()
    assert logged(tracker, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_metrics_beyond_one_request_are_sent_in_several(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_BATCH", 7)
    for epoch in range(1, 21):
        tracker.log_metrics({"loss": float(epoch)}, step=epoch)
    assert tracker.flush()
    assert logged(tracker, "loss") == [(epoch, float(epoch)) for epoch in range(1, 21)]


def test_a_resumed_attempt_logs_no_epoch_twice(tracker: Tracker) -> None:
    for epoch in (1, 2):
        tracker.log_metrics({"loss": float(epoch), "step": 10.0 * epoch}, step=epoch)
    tracker.flush()
    second = Tracker(tracker.uri, tracker.run_id)
    for epoch in (2, 3):  # it resumes from the checkpoint of epoch 1
        second.log_metrics({"loss": 100.0 * epoch, "step": 10.0 * epoch}, step=epoch)
    second.flush()
    assert logged(tracker, "loss") == [(1, 1.0), (2, 2.0), (3, 300.0)]


def test_metrics_are_kept_while_the_store_is_unreachable_and_sent_later(
    tracker: Tracker, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker.log_metrics({"loss": 3.0}, step=1)
    with unreachable(folder), caplog.at_level(logging.WARNING, logger=outbox.__name__):
        assert not tracker.flush()
        assert not tracker.flush()
        assert caplog.text.count("is unreachable; metrics are kept and the job continues") == 1
        tracker.log_metrics({"loss": 2.0}, step=2)
        assert not tracker.consume_recovery()
    assert tracker.flush()
    assert tracker.consume_recovery()
    assert not tracker.consume_recovery()
    assert tracker.flush()  # nothing is sent twice
    assert logged(tracker, "loss") == [(1, 3.0), (2, 2.0)]


def test_the_next_attempt_sends_what_a_dead_attempt_could_not_send(
    tracker: Tracker, folder: Path, tmp_path: Path
) -> None:
    first = Tracker(tracker.uri, tracker.run_id, str(tmp_path))
    first.log_metrics({"loss": 4.0}, step=1)
    assert first.flush()
    with unreachable(folder):
        first.log_metrics({"loss": 3.0, "auroc": 0.5}, step=2)
        first.add_tags({"quarantined": "a"})
        first.add_text("slide_id\na\n", "quarantine.csv")
        first.save_outbox()
        assert (tmp_path / OUTBOX_FILE).exists()
        second = Tracker(tracker.uri, tracker.run_id, str(tmp_path))
        second.load_outbox()
        second.log_metrics({"loss": 3.0, "auroc": 0.5}, step=2)  # it resumes from a checkpoint before that step
        second.log_metrics({"loss": 2.0}, step=3)
        assert not second.flush()
    second.save_outbox()
    assert logged(tracker, "loss") == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert logged(tracker, "auroc") == [(2, 0.5)]
    assert tracker.client.get_run(tracker.run_id).data.tags["quarantined"] == "a"
    assert Path(tracker.client.download_artifacts(tracker.run_id, "quarantine.csv")).read_text() == "slide_id\na\n"
    assert not (tmp_path / OUTBOX_FILE).exists()


def test_a_corrupt_outbox_file_is_reported_and_the_job_continues(
    tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / OUTBOX_FILE).write_text('{"step": 1, "time_ms"')
    second = Tracker(tracker.uri, tracker.run_id, str(tmp_path))
    with caplog.at_level(logging.WARNING, logger=outbox.__name__):
        second.load_outbox()
    assert f"{tmp_path / OUTBOX_FILE} is unreadable" in caplog.text
    second.log_metrics({"loss": 1.0}, step=1)
    assert second.flush()
    assert logged(tracker, "loss") == [(1, 1.0)]


def test_a_request_whose_answer_was_lost_is_not_repeated(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    send = tracker.client.log_batch

    def send_and_lose_the_answer(*arguments: object, **options: object) -> None:
        send(*arguments, **options)  # type: ignore[arg-type]
        raise OSError("connection reset")

    tracker.log_metrics({"loss": 1.0}, step=1)
    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "log_batch", send_and_lose_the_answer)
        assert not tracker.flush()
    tracker.log_metrics({"loss": 2.0}, step=2)
    assert tracker.flush()
    assert logged(tracker, "loss") == [(1, 1.0), (2, 2.0)]


def test_a_server_that_hangs_does_not_block_the_training(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that trains continues, and a checkpoint waits for a moment only."""
    release, hanging = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        hanging.set()
        release.wait(60)
        raise OSError("timed out")

    monkeypatch.setattr(outbox, "SAVE_AFTER_S", 0.05)
    monkeypatch.setattr(tracker.client, "log_batch", hang)
    tracker.log_metrics({"loss": 1.0}, step=1)
    tracker.send_in_background()
    assert hanging.wait(10)
    tracker.log_metrics({"loss": 2.0}, step=2)
    tracker.send_in_background()
    tracker.save_outbox()
    release.set()


def test_the_outbox_is_sent_when_the_run_ends(tracker: Tracker) -> None:
    tracker.log_metrics({"loss": 3.0}, step=1)
    tracker.end("FINISHED")
    assert logged(tracker, "loss") == [(1, 3.0)]
    assert tracker.client.get_run(tracker.run_id).info.status == "FINISHED"
