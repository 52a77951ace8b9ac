"""Jobs that ended long ago are forgotten, and nothing else is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from service import storage
from service.errors import NotFoundError, StorageError
from service.queue import retention as module
from service.queue.attempt_folder import Beat, attempt_folder
from service.queue.job_rows import ConflictError
from service.queue.requests import Check
from service.queue.retention import Retention
from service.queue.store import Filter, JobStore, Limits
from service.queue.tables import Database, jobs
from service.settings.service import ServiceSettings

DAY_S = 86400


class Own:
    def __init__(self, folder: Path, keep_days: float | None) -> None:
        self.settings = ServiceSettings(storage=str(folder), keep_days=keep_days)
        self.store = JobStore(Database(self.settings.database_url))
        self.forgotten: list[tuple[str, int]] = []
        self.retention = Retention(self.store, self.settings, lambda *attempt: self.forgotten.append(attempt))

    def ended(self, days_ago: float) -> str:
        """A job with a log and scores that ended so long ago."""
        self.store.add(Check(manifest="/m.csv"), "ada")
        [job] = self.store.admit(Limits({"check": 9}, 9))
        folder = attempt_folder(self.settings.job_folder("ada", job.id), 1)
        folder.write_beat(Beat(count=1, log_bytes=3))
        folder.write_log(0, b"log")
        for name in ("settings.yaml", "scores/scores.csv"):
            storage.write_bytes(f"{self.settings.job_folder('ada', job.id)}/{name}", b"x")
        self.store.end(job.id, 1, state="done", reason=None, exit_code=0)
        with self.store.database.writing() as connection:
            then = {"ended_s": time.time() - days_ago * DAY_S}
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(then))
        return job.id

    def files(self, job_id: str) -> list[str]:
        folder = self.settings.job_folder("ada", job_id)
        return [str(Path(uri).relative_to(folder)) for uri in storage.list_uris(folder)]


def test_rows_logs_and_attempts_go_and_results_stay(tmp_path: Path) -> None:
    own = Own(tmp_path, keep_days=30)
    old, new = own.ended(31), own.ended(29)
    own.retention.tick()
    assert [job.id for job in own.store.page(Filter())] == [new]
    assert (own.store.attempts(old), own.store.events(old), own.forgotten) == ([], [], [(old, 1)])
    with pytest.raises(NotFoundError):
        own.store.job(old)
    assert own.files(old) == ["scores/scores.csv"]
    assert not (tmp_path / "users/ada/jobs" / old / "attempts").exists()
    assert len(own.files(new)) == 4


def test_a_job_that_has_not_ended_is_kept_however_old(tmp_path: Path) -> None:
    own = Own(tmp_path, keep_days=30)
    own.store.add(Check(manifest="/m.csv"), "ada")
    with own.store.database.writing() as connection:
        connection.execute(jobs.update().values(created_s=0.0, due_s=0.0))
    own.retention.tick()
    assert len(own.store.page(Filter())) == 1


def test_nothing_is_forgotten_where_that_is_off(tmp_path: Path) -> None:
    own = Own(tmp_path, keep_days=None)
    old = own.ended(10_000)
    own.retention.tick()
    assert own.store.job(old).state == "done"


def test_one_that_was_queued_again_in_time_stays(tmp_path: Path) -> None:
    own = Own(tmp_path, keep_days=30)
    old = own.ended(31)
    with own.store.database.writing() as connection:
        connection.execute(jobs.update().values(state="failed"))
    own.store.retry(old)
    own.retention.tick()
    assert own.store.job(old).state == "queued"


def test_one_that_is_being_removed_cannot_be_queued_again(tmp_path: Path) -> None:
    """Else its new attempt would lose its files."""
    own = Own(tmp_path, keep_days=30)
    old = own.ended(31)
    with own.store.database.writing() as connection:
        connection.execute(jobs.update().values(state="failed"))
    own.store.expire(time.time() - 30 * DAY_S)
    with pytest.raises(ConflictError, match="being deleted"):
        own.store.retry(old)


def test_a_deleted_job_goes_with_results_and_checkpoints_and_no_other_does(tmp_path: Path) -> None:
    own = Own(tmp_path, keep_days=None)
    deleted, other = own.ended(0), own.ended(0)
    for job_id in (deleted, other):
        storage.write_bytes(f"{own.settings.runs('ada')}/{job_id}/checkpoint", b"x")
    own.store.request_deletion(deleted)
    own.retention.tick()
    assert [job.id for job in own.store.page(Filter())] == [other]
    assert (own.files(deleted), len(own.files(other))) == ([], 4)
    assert storage.list_uris(own.settings.runs("ada")) == [f"{own.settings.runs('ada')}/{other}/checkpoint"]


def test_a_job_that_has_not_ended_is_not_deleted(tmp_path: Path) -> None:
    own = Own(tmp_path, keep_days=None)
    own.store.add(Check(manifest="/m.csv"), "ada")
    [job] = own.store.admit(Limits({"check": 9}, 9))
    with pytest.raises(ConflictError, match="is starting; cancel it first"):
        own.store.request_deletion(job.id)
    own.retention.tick()
    assert own.store.job(job.id).state == "starting"


@pytest.mark.parametrize("step", ["delete_all", "forget_attempt", "forget"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_deletion_that_was_killed_is_completed_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    own = Own(tmp_path, keep_days=None)
    own.store.request_deletion(own.ended(0))
    places: dict[str, tuple[object, str]] = {
        "delete_all": (storage, "delete_all"),
        "forget_attempt": (own.retention, "_forget_attempt"),
        "forget": (own.store, "forget"),
    }
    owner, name = places[step]
    real = getattr(owner, name)

    def killed(*arguments: object) -> None:
        if when == "after":
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(KeyboardInterrupt):
        own.retention.tick()
    monkeypatch.undo()
    Retention(own.store, own.settings).tick()
    assert own.store.page(Filter()) == []
    assert storage.list_uris(own.settings.user_folder("ada")) == []


def test_a_store_that_is_away_puts_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Own(tmp_path, keep_days=30)
    old, real = own.ended(31), storage.delete_all

    def away(uri: str) -> None:
        raise StorageError("no answer", uri=uri)

    monkeypatch.setattr(storage, "delete_all", away)
    own.retention.tick()
    assert own.store.job(old).state == "done"
    monkeypatch.setattr(storage, "delete_all", real)
    own.retention.tick()
    assert own.store.job(old).state == "done"  # not at every tick
    monkeypatch.setattr(module.time, "monotonic", lambda: 1e12)
    own.retention.tick()
    assert own.store.page(Filter()) == []
