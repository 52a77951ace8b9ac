"""Two dispatchers of one queue: exactly one works, and the other takes over when the first one ends in any way."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.queue.incidents import DISPATCHER
from service.queue.lease import is_held
from service.queue.tables import Database
from tests.flows.harness import FLOW, answers
from tests.flows.queue_harness import Queue
from tests.flows.queue_harness import queue as make_queue
from tests.postgres import postgres

pytestmark = [*FLOW, pytest.mark.long]

BOTH = ("first", "second")


@pytest.fixture(params=["sqlite", "postgres"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queue]:
    """Start a queue with two dispatchers, of which one works."""
    if request.param == "sqlite":
        with make_queue(tmp_path) as queue:
            yield start_pair(queue)
        return
    with postgres() as server, make_queue(tmp_path, server.url) as queue:
        yield start_pair(queue)


def start_pair(queue: Queue) -> Queue:
    queue.start_ray()
    queue.start_api()
    for part in BOTH:
        queue.start_dispatcher_as(part)
    queue.parts["first"].wait_for(lambda: queue.at_work(*BOTH), 60)
    return queue


def test_one_works_and_the_other_takes_over_when_it_is_killed(pair: Queue) -> None:
    jobs = {name: pair.submit(name).id for name in ("3-a", "3-b", "0.1-c")}
    for name in ("3-a", "3-b"):
        pair.wait_for_start(name)
    [working] = pair.at_work(*BOTH)
    [other] = set(BOTH) - {working}
    pair.kill(working)
    killed_s = time.monotonic()
    late = pair.submit("0.1-late")
    pair.parts[other].wait_for(lambda: pair.at_work(other), 60)
    print(f"\ntook over after {time.monotonic() - killed_s:.1f} s; the lease lasts {pair.settings.lease_s:g} s")
    for job_id in (*jobs.values(), late.id):
        ended = pair.client.wait(job_id, timeout_s=60)
        assert (ended.state, ended.attempt) == ("done", 1)
    for name in (*jobs, "0.1-late"):
        assert pair.trace(name) == {"start": 1, "end": 1}


def test_a_paused_dispatcher_that_comes_back_changes_nothing_and_ends(pair: Queue) -> None:
    job = pair.submit("4-paused")
    pair.wait_for_start("4-paused")
    [working] = pair.at_work(*BOTH)
    [other] = set(BOTH) - {working}
    paused = psutil.Process(pair.parts[working].process.pid)
    paused.suspend()
    pair.parts[other].wait_for(lambda: pair.at_work(other), 60)
    later = pair.submit("1-later")
    pair.wait_for_start("1-later")
    paused.resume()
    assert pair.parts[working].process.wait(30) == 1
    assert "another dispatcher has taken the lease" in pair.parts[working].output
    for job_id in (job.id, later.id):
        ended = pair.client.wait(job_id, timeout_s=60)
        assert (ended.state, ended.attempt) == ("done", 1)
    for name in ("4-paused", "1-later"):
        assert pair.trace(name) == {"start": 1, "end": 1}
    starts = pair.starts.read_text().split()
    assert len(starts) == len(set(starts)) == 2


def test_an_orderly_stop_gives_the_lease_back_at_once_although_jobs_run(pair: Queue) -> None:
    job = pair.submit("3-running")
    pair.wait_for_start("3-running")
    [working] = pair.at_work(*BOTH)
    [other] = set(BOTH) - {working}
    pair.parts[working].process.send_signal(signal.SIGTERM)
    assert pair.parts[working].process.wait(60) == 0
    pair.parts[other].wait_for(lambda: pair.at_work(other), 60)
    database = Database(pair.settings.database_url)
    assert is_held(database, DISPATCHER)
    database.close()
    assert answers(f"{pair.client.url}/readyz")
    assert pair.client.wait(job.id, timeout_s=60).state == "done"
    assert pair.trace("3-running") == {"start": 1, "end": 1}
