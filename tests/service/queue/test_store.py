"""Operations on the jobs table: each change happens once, even if it is repeated."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.errors import NotFoundError, UsageError
from service.progress.record import Progress
from service.queue.backoff import Backoff
from service.queue.job_reader import Filter
from service.queue.job_rows import ConflictError, TooManyJobsError
from service.queue.lease import Lease
from service.queue.requests import Check, Score, from_json
from service.queue.store import JobStore, Limits
from service.queue.tables import Database
from tests.postgres import postgres

ALL = Limits({"check": 9, "train": 9, "tune": 9, "score": 9}, 9)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        yield (opened := Database(f"sqlite:///{tmp_path_factory.mktemp('queue')}/queue.db"))
        opened.close()
        return
    with postgres() as server:
        yield (opened := Database(server.url))
        opened.close()


@pytest.fixture
def store(database: Database) -> JobStore:
    store = JobStore(database)
    for job in store.page(Filter(), limit=500):  # of the tests before
        store.cancel(job.id)
        if job.state in ("starting", "running"):
            store.end_attempt(job.id, job.attempt, state="failed", reason=None, exit_code=None)
    return store


def test_a_request_is_kept_as_it_was(store: JobStore) -> None:
    request = Score(manifest="/m.csv", model="models:/magnet@champion", split="test")
    job, new = store.add(request, "ada")
    assert new
    assert from_json(store.job(job.id).request) == request


def test_one_key_makes_one_job_for_many_submissions_at_once(store: JobStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: store.add(Check(manifest="/m"), "ada", idempotency_key="same"), range(16)))
    assert len({job.id for job, _ in made}) == 1
    assert sum(new for _, new in made) == 1


def test_an_attempt_starts_runs_and_ends_once(store: JobStore) -> None:
    job, _ = store.add(Check(manifest="/m"), "ada")
    assert [started.id for started in store.admit(ALL)] == [job.id]
    assert store.admit(ALL) == []
    store.mark_running(job.id, 1)
    store.mark_running(job.id, 1)
    store.record_heartbeat(job.id, 1, Progress(done=3, total=4, eta_s=5.0, activity="scoring"))
    store.record_heartbeat(job.id, 1, Progress(mlflow_run="ab"))  # what a record lacks stays
    shown = store.job(job.id)
    assert (shown.state, shown.done, shown.total, shown.mlflow_run) == ("running", 3, 4, "ab")
    store.end_attempt(job.id, 1, state="done", reason=None, exit_code=0)
    store.end_attempt(job.id, 1, state="failed", reason="late", exit_code=1)
    assert store.job(job.id).state == "done"
    assert [event.state for event in store.events(job.id)] == ["queued", "starting", "running", "done"]


def test_a_late_report_of_an_earlier_attempt_changes_nothing(store: JobStore) -> None:
    job, _ = store.add(Check(manifest="/m"), "ada")
    store.admit(ALL)
    store.requeue(job.id, 1, reason="killed", exit_code=None, wait_s=0)
    assert store.admit(ALL)[0].attempt == 2
    store.end_attempt(job.id, 1, state="done", reason=None, exit_code=0)
    store.record_heartbeat(job.id, 1, Progress(done=1))
    assert (store.job(job.id).state, store.job(job.id).done) == ("starting", None)


def test_a_job_is_not_admitted_before_its_next_attempt_is_due(store: JobStore) -> None:
    job, _ = store.add(Check(manifest="/m"), "ada")
    store.admit(ALL)
    store.requeue(job.id, 1, reason="killed", exit_code=None, wait_s=60)
    assert store.admit(ALL) == []
    assert store.cancel(job.id).state == "cancelled"


def test_a_running_job_is_cancelled_by_a_flag_and_an_ended_one_not_at_all(store: JobStore) -> None:
    job, _ = store.add(Check(manifest="/m"), "ada")
    store.admit(ALL)
    assert (store.cancel(job.id).state, store.cancel(job.id).cancel_requested) == ("starting", 1)
    assert [e.text for e in store.events(job.id)].count("cancel requested") == 1
    store.end_attempt(job.id, 1, state="cancelled", reason="cancelled", exit_code=None)
    assert store.cancel(job.id).state == "cancelled"


def test_a_retry_by_hand_continues_the_numbers_and_gives_new_attempts(store: JobStore) -> None:
    job, _ = store.add(Check(manifest="/m"), "ada", max_attempts=1)
    store.admit(ALL)
    assert store.job(job.id).attempts_left == 0
    store.end_attempt(job.id, 1, state="failed", reason="x", exit_code=1)
    store.retry(job.id)
    assert store.admit(ALL)[0].attempt == 2
    assert store.job(job.id).attempts_left == 0
    with pytest.raises(ConflictError, match="only a failed or cancelled"):
        store.retry(job.id)


def test_a_retry_by_hand_counts_against_the_quota(store: JobStore) -> None:
    failed, _ = store.add(Check(manifest="/m"), "ada")
    store.admit(ALL)
    store.end_attempt(failed.id, 1, state="failed", reason="x", exit_code=1)
    store.add(Check(manifest="/m"), "ada")
    with pytest.raises(TooManyJobsError, match="1 jobs of ada"):
        store.retry(failed.id, max_queued=1)
    assert store.job(failed.id).state == "failed"
    assert store.retry(failed.id, max_queued=2).state == "queued"


def test_a_missing_job_and_a_priority_out_of_range_are_refused(store: JobStore) -> None:
    with pytest.raises(NotFoundError, match="no job x"):
        store.cancel("x")
    job, _ = store.add(Check(manifest="/m"), "ada")
    with pytest.raises(UsageError, match="-10 to 10"):
        store.set_priority(job.id, 11)


def test_a_lease_has_one_holder_and_another_takes_it_when_it_ends(database: Database) -> None:
    first, second, third = (Lease(database, "x", name, seconds) for name, seconds in (("1", 0.0), ("2", 60), ("3", 60)))
    assert first.take()
    assert second.take()  # the lease of the first one has ended
    assert not third.take()
    assert second.take()
    second.give_back()
    assert third.take()


def test_waits_double_up_to_a_bound() -> None:
    backoff = Backoff(first_s=10, most_s=60)
    for num_failed, longest_s in ((1, 10), (2, 20), (3, 40), (4, 60), (5000, 60)):
        assert longest_s / 2 <= backoff.wait_s(num_failed) <= longest_s
