"""Removal of jobs that are deleted or expired, and of nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from service import storage
from service.errors import NotFoundError, StorageError
from service.queue import retention as module
from service.queue.attempt_folder import Heartbeat, attempt_folder
from service.queue.job_reader import Filter
from service.queue.job_rows import ConflictError
from service.queue.requests import Check
from service.queue.retention import Retention
from service.queue.store import JobStore, Limits
from service.queue.tables import Database, jobs
from service.settings.service import ServiceSettings

DAY_S = 86400


class Rig:
    def __init__(self, folder: Path, keep_days: float | None) -> None:
        self.settings = ServiceSettings(storage=str(folder), keep_days=keep_days)
        self.store = JobStore(Database(self.settings.database_url))
        self.forgotten: list[tuple[str, int]] = []
        self.retention = Retention(self.store, self.settings, lambda *attempt: self.forgotten.append(attempt))

    def add_ended_job(self, days_ago: float) -> str:
        """Add a job with a log and scores that ended some days ago; return its id."""
        self.store.add(Check(manifest="/m.csv"), "ada")
        [job] = self.store.admit(Limits({"check": 9}, 9))
        folder = attempt_folder(self.settings.job_folder("ada", job.id), 1)
        folder.write_beat(Heartbeat(count=1, log_bytes=3))
        folder.write_log(0, b"log")
        for name in ("settings.yaml", "scores/scores.csv"):
            storage.write_bytes(f"{self.settings.job_folder('ada', job.id)}/{name}", b"x")
        self.store.end_attempt(job.id, 1, state="done", reason=None, exit_code=0)
        with self.store.database.writing() as connection:
            then = {"ended_s": time.time() - days_ago * DAY_S}
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(then))
        return job.id

    def files(self, job_id: str) -> list[str]:
        folder = self.settings.job_folder("ada", job_id)
        return [str(Path(uri).relative_to(folder)) for uri in storage.list_uris(folder)]


def test_rows_and_logs_of_an_expired_job_are_removed_and_results_stay(tmp_path: Path) -> None:
    rig = Rig(tmp_path, keep_days=30)
    old, new = rig.add_ended_job(31), rig.add_ended_job(29)
    rig.retention.tick()
    assert [job.id for job in rig.store.page(Filter())] == [new]
    assert (rig.store.attempts(old), rig.store.events(old), rig.forgotten) == ([], [], [(old, 1)])
    with pytest.raises(NotFoundError):
        rig.store.job(old)
    assert rig.files(old) == ["scores/scores.csv"]
    assert not (tmp_path / "users/ada/jobs" / old / "attempts").exists()
    assert len(rig.files(new)) == 4


def test_a_job_that_has_not_ended_never_expires(tmp_path: Path) -> None:
    rig = Rig(tmp_path, keep_days=30)
    rig.store.add(Check(manifest="/m.csv"), "ada")
    with rig.store.database.writing() as connection:
        connection.execute(jobs.update().values(created_s=0.0, due_s=0.0))
    rig.retention.tick()
    assert len(rig.store.page(Filter())) == 1


def test_nothing_expires_without_keep_days(tmp_path: Path) -> None:
    rig = Rig(tmp_path, keep_days=None)
    old = rig.add_ended_job(10_000)
    rig.retention.tick()
    assert rig.store.job(old).state == "done"


def test_a_job_that_was_queued_again_in_time_stays(tmp_path: Path) -> None:
    rig = Rig(tmp_path, keep_days=30)
    old = rig.add_ended_job(31)
    with rig.store.database.writing() as connection:
        connection.execute(jobs.update().values(state="failed"))
    rig.store.retry(old)
    rig.retention.tick()
    assert rig.store.job(old).state == "queued"


def test_a_job_that_is_being_removed_cannot_be_queued_again(tmp_path: Path) -> None:
    """Otherwise its new attempt would lose its files."""
    rig = Rig(tmp_path, keep_days=30)
    old = rig.add_ended_job(31)
    with rig.store.database.writing() as connection:
        connection.execute(jobs.update().values(state="failed"))
    rig.store.expire(time.time() - 30 * DAY_S)
    with pytest.raises(ConflictError, match="being deleted"):
        rig.store.retry(old)


def test_a_deleted_job_loses_results_and_checkpoints_and_no_other_job_does(tmp_path: Path) -> None:
    rig = Rig(tmp_path, keep_days=None)
    deleted, other = rig.add_ended_job(0), rig.add_ended_job(0)
    for job_id in (deleted, other):
        storage.write_bytes(f"{rig.settings.runs('ada')}/{job_id}/checkpoint", b"x")
    rig.store.request_deletion(deleted)
    rig.retention.tick()
    assert [job.id for job in rig.store.page(Filter())] == [other]
    assert (rig.files(deleted), len(rig.files(other))) == ([], 4)
    assert storage.list_uris(rig.settings.runs("ada")) == [f"{rig.settings.runs('ada')}/{other}/checkpoint"]


def test_a_job_that_has_not_ended_is_not_deleted(tmp_path: Path) -> None:
    rig = Rig(tmp_path, keep_days=None)
    rig.store.add(Check(manifest="/m.csv"), "ada")
    [job] = rig.store.admit(Limits({"check": 9}, 9))
    with pytest.raises(ConflictError, match="is starting; cancel it first"):
        rig.store.request_deletion(job.id)
    rig.retention.tick()
    assert rig.store.job(job.id).state == "starting"


@pytest.mark.parametrize("step", ["delete_all", "forget_attempt", "forget"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_deletion_that_was_killed_is_completed_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    rig = Rig(tmp_path, keep_days=None)
    rig.store.request_deletion(rig.add_ended_job(0))
    places: dict[str, tuple[object, str]] = {
        "delete_all": (storage, "delete_all"),
        "forget_attempt": (rig.retention, "_forget_attempt"),
        "forget": (rig.store, "forget"),
    }
    owner, name = places[step]
    real = getattr(owner, name)

    def killed(*arguments: object) -> None:
        if when == "after":
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(KeyboardInterrupt):
        rig.retention.tick()
    monkeypatch.undo()
    Retention(rig.store, rig.settings).tick()
    assert rig.store.page(Filter()) == []
    assert storage.list_uris(rig.settings.user_folder("ada")) == []


def test_an_unavailable_store_delays_the_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path, keep_days=30)
    old, real = rig.add_ended_job(31), storage.delete_all

    def unavailable(uri: str) -> None:
        raise StorageError("no answer", uri=uri)

    monkeypatch.setattr(storage, "delete_all", unavailable)
    rig.retention.tick()
    assert rig.store.job(old).state == "done"
    monkeypatch.setattr(storage, "delete_all", real)
    rig.retention.tick()
    assert rig.store.job(old).state == "done"  # not at every tick
    monkeypatch.setattr(module.time, "monotonic", lambda: 1e12)
    rig.retention.tick()
    assert rig.store.page(Filter()) == []
