"""The dispatcher: errors of its parts, its lease, and when the service counts as not ready."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from service.progress.record import Progress
from service.queue import dispatcher as module
from service.queue import incidents as incidents_module
from service.queue.dispatcher import Part, StoppingError
from service.queue.incidents import KEPT, Incidents
from service.queue.job import Job
from service.queue.job_reader import Filter
from service.queue.lease import Lease, LeaseLostError, is_held
from service.queue.requests import Check
from service.queue.store import JobStore, Limits
from service.queue.tables import Database, incidents, jobs
from tests.service.api.api_app import Api, make_api

ALL = Limits({"check": 9, "train": 9, "tune": 9, "score": 9}, 9)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path}/queue.db")


class Failing:
    def __init__(self, *errors: Exception | None) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> None:
        self.calls += 1
        if (error := self.errors.pop(0)) is not None:
            raise error


def test_a_part_that_fails_pauses_and_is_recorded_with_one_traceback(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    action = Failing(*(UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates") for _ in range(3)), None, None)
    part = Part("Arrivals", action, Incidents(database))
    with caplog.at_level(logging.ERROR):
        for second in range(8):  # it fails at 0, 1 and 3, and succeeds at 7
            clock[0] = float(second)
            part.run()
    assert action.calls == 4
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert Incidents(database).counts(60)["error"] == 3
    assert Incidents(database).last("error").startswith("Arrivals: UnicodeEncodeError")
    clock[0] = 8.0
    part.run()
    assert action.calls == 5  # no pause after a success


def test_a_part_does_not_catch_the_stop_of_the_dispatcher(database: Database) -> None:
    with pytest.raises(StoppingError):
        Part("x", Failing(StoppingError()), Incidents(database)).run()


def test_incidents_are_bounded(database: Database) -> None:
    for k in range(KEPT + 20):
        Incidents(database).add("error", str(k))
    Incidents(database, "another").add("error", "x")
    assert Incidents(database).counts(1e6)["error"] == KEPT
    assert Incidents(database).last("error") == str(KEPT + 19)


@pytest.fixture
def served(tmp_path: Path) -> Api:
    service = make_api(tmp_path)
    assert Lease(service.store.database, "dispatcher", "me", 60).take()
    return service


def test_a_dispatcher_that_keeps_crashing_is_not_ready_although_it_holds_the_lease(served: Api) -> None:
    incidents_of_dispatcher = Incidents(served.store.database)
    for _ in range(3):
        incidents_of_dispatcher.add("start")
    assert served.http.get("/readyz").status_code == 200
    incidents_of_dispatcher.add("error", "Arrivals: KeyError: 'x'")
    incidents_of_dispatcher.add("start")
    answer = served.http.get("/readyz")
    assert answer.status_code == 503
    assert "started 4 times in 10 minutes without an orderly stop" in answer.json()["detail"]
    assert "KeyError" in answer.json()["detail"]
    assert "magnet_dispatcher_restarts 3.0" in served.http.get("/metrics").text


def test_orderly_restarts_and_old_crashes_do_not_count(served: Api) -> None:
    incidents_of_dispatcher = Incidents(served.store.database)
    for _ in range(5):
        incidents_of_dispatcher.add("start")
    with served.store.database.writing() as connection:
        connection.execute(incidents.update().values(at_s=time.time() - incidents_module.RESTART_WINDOW_S - 1))
    for _ in range(5):
        incidents_of_dispatcher.add("start")
        incidents_of_dispatcher.add("stop")
    assert served.http.get("/readyz").status_code == 200


def test_a_loop_that_keeps_failing_is_not_ready(served: Api) -> None:
    for _ in range(4):
        Incidents(served.store.database).add("error", "admission: ValueError: bad row")
    answer = served.http.get("/readyz")
    assert answer.status_code == 503
    assert "admission: ValueError: bad row" in answer.json()["detail"]
    assert "magnet_dispatcher_errors 4.0" in served.http.get("/metrics").text


def started_job(store: JobStore) -> Job:
    store.add(Check(manifest="/m.csv"), "ada")
    [job] = store.admit(ALL)
    return job


def test_every_write_of_a_dispatcher_whose_lease_went_to_another_is_refused(database: Database) -> None:
    stale = Lease(database, "dispatcher", "stale", 0.0)
    assert stale.take()
    store = JobStore(database, fence=stale.require)
    job = started_job(store)
    assert Lease(database, "dispatcher", "new", 60.0).take()
    before = store.job(job.id)
    writes = [
        lambda: store.admit(ALL),
        lambda: store.mark_running(job.id, 1),
        lambda: store.record_heartbeat(job.id, 1, Progress(done=1)),
        lambda: store.set_activity(job.id, 1, "x"),
        lambda: store.mark_waiting(job.id, 1, "x"),
        lambda: store.end_attempt(job.id, 1, state="failed", reason="x", exit_code=1),
        lambda: store.requeue(job.id, 1, reason="x", exit_code=1, wait_s=0),
        lambda: store.expire(time.time()),
        lambda: store.forget(job.id),
        lambda: store.add(Check(manifest="/m.csv"), "ada"),
        lambda: store.cancel(job.id),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError):
            write()
    assert store.job(job.id) == before
    assert len(store.page(Filter())) == 1


def test_a_lease_that_ended_is_valid_until_another_process_takes_it(database: Database) -> None:
    lease = Lease(database, "dispatcher", "me", 0.0)
    assert lease.take()
    assert not is_held(database, "dispatcher")
    assert started_job(JobStore(database, fence=lease.require)).state == "starting"


def test_a_waiting_job_of_an_unknown_kind_fails_and_delays_no_other(database: Database) -> None:
    store = JobStore(database)
    strange, _ = store.add(Check(manifest="/m.csv"), "ada")
    with database.writing() as connection:
        connection.execute(jobs.update().values(kind="dream"))
    good = started_job(store)
    assert good.id != strange.id
    assert store.job(strange.id).state == "failed"
    assert "'dream'" in (store.job(strange.id).reason or "")


def test_a_job_that_is_cancelled_while_it_is_admitted_stays_cancelled(database: Database) -> None:
    store = JobStore(database)
    job, _ = store.add(Check(manifest="/m.csv"), "ada")
    store.cancel(job.id)
    with database.writing() as connection:
        assert store._start_attempt(connection, job.id, time.time()) is None
    assert store.job(job.id).state == "cancelled"


def test_text_that_a_database_refuses_is_cleaned(database: Database) -> None:
    store = JobStore(database)
    job = started_job(store)
    store.end_attempt(job.id, 1, state="failed", reason="a\0b \ud800", exit_code=1)
    assert store.job(job.id).reason == "ab ?"


def test_limits_of_users_and_groups_hold_at_admission(database: Database) -> None:
    store = JobStore(database)
    for owner, groups in (("ada", ()), ("bob", ("guests",))):
        for _ in range(3):
            store.add(Check(manifest="/m.csv"), owner, groups=groups)
    limits = Limits(ALL.per_kind, 2, lambda owner, groups: 1 if "guests" in groups else 2)
    assert sorted(job.owner for job in store.admit(limits)) == ["ada", "ada", "bob"]
