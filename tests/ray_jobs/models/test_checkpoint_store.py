"""Which checkpoints of a job are valid, intact and kept; in a folder and in a bucket."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.models.checkpoint_store import MARKER, CheckpointStore
from ray_jobs.models.checkpoints import CheckpointError
from service import storage
from service.errors import StorageError
from service.testing.fake_store import HttpStore


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckpointStore]:
    if request.param == "folder":
        yield CheckpointStore(str(tmp_path / "runs" / "job"))
        return
    with HttpStore(tmp_path) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MAGNET_STORAGE_DEADLINE_S", "5")
        yield CheckpointStore("s3://bucket/runs/job")


def publish(store: CheckpointStore, step: int, selection: float | None = None) -> None:
    store.publish({"weights": b"w" * step, "state": f"{step}".encode()}, step, selection)


def steps(store: CheckpointStore) -> list[int]:
    return [checkpoint.step for checkpoint in store.list_published()]


def test_a_new_job_has_no_checkpoint(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.list_published() == []
    assert store.find_best() is None
    assert store.fetch_newest(tmp_path) is None


def test_the_two_newest_and_the_best_are_kept(store: CheckpointStore) -> None:
    for step, selection in ((1, 0.1), (2, 0.9), (3, None), (4, 0.5), (5, None), (12, 0.9)):
        publish(store, step, selection)
    assert steps(store) == [2, 5, 12]
    best = store.find_best()
    assert best is not None
    assert best.step == 2  # the earlier of two equally good ones
    names = {storage.name(storage.parent(uri)) for uri in storage.list_uris(store.uri)}
    assert names == {"checkpoint-00000002", "checkpoint-00000005", "checkpoint-00000012"}


def test_without_validation_the_newest_is_the_best(store: CheckpointStore) -> None:
    publish(store, 1)
    publish(store, 2)
    best = store.find_best()
    assert best is not None
    assert best.step == 2


def test_the_newest_is_fetched_completely(store: CheckpointStore, tmp_path: Path) -> None:
    publish(store, 1)
    publish(store, 2)
    newest = store.fetch_newest(tmp_path)
    assert newest is not None
    assert newest.step == 2
    assert (tmp_path / "weights").read_bytes() == b"ww"
    assert (tmp_path / "state").read_bytes() == b"2"


@pytest.mark.parametrize("damage", ["changed", "missing", "no marker", "corrupt marker"])
def test_a_corrupt_checkpoint_is_skipped_with_a_warning(
    store: CheckpointStore, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store, 1)
    publish(store, 2)
    newest = store.list_published()[-1].folder
    if damage == "changed":
        storage.write_bytes(storage.join(newest, "weights"), b"wx")
    elif damage == "corrupt marker":
        storage.write_bytes(storage.join(newest, MARKER), b'{"step": 2, ')
    else:
        storage.delete(storage.join(newest, "weights" if damage == "missing" else MARKER))
    with caplog.at_level(logging.WARNING):
        fetched = store.fetch_newest(tmp_path)
    assert fetched is not None
    assert fetched.step == 1
    assert (tmp_path / "weights").read_bytes() == b"w"
    if damage != "no marker":  # without a marker it was never published
        assert newest in caplog.text
    publish(store, 2)  # the next attempt reaches the same step
    assert steps(store) == [1, 2]


def test_if_all_checkpoints_are_corrupt_the_job_does_not_start_from_the_beginning(
    store: CheckpointStore, tmp_path: Path
) -> None:
    publish(store, 1)
    storage.write_bytes(storage.join(store.list_published()[0].folder, "weights"), b"")
    with pytest.raises(CheckpointError, match=r"all checkpoints are corrupt: .*weights: is corrupt.*another --name"):
        store.fetch_newest(tmp_path)


def test_a_publication_that_fails_leaves_earlier_checkpoints_unchanged(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, 1)
    write = storage.write_bytes

    def fail(uri: str, data: bytes, deadline_s: float | None = None) -> None:
        if uri.endswith("state"):
            raise StorageError("No space left on device", uri=uri)
        write(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", fail)
        with pytest.raises(StorageError):
            publish(store, 2)
    assert steps(store) == [1]
    publish(store, 3)  # this also deletes the files of the failed one
    assert not any("checkpoint-00000002" in uri for uri in storage.list_uris(store.uri))


def test_a_store_with_patience_waits_for_an_unreachable_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpStore(tmp_path) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MAGNET_STORAGE_DEADLINE_S", "0.1")
        uri = "s3://bucket/runs/job"
        server.unavailable = True
        with pytest.raises(StorageError, match="gave up"):
            publish(CheckpointStore(uri), 1)
        recovery = threading.Timer(0.5, server.toggle)
        recovery.start()
        publish(CheckpointStore(uri, patience_s=30), 1)
        recovery.join()
        assert steps(CheckpointStore(uri)) == [1]
