"""No job is lost, and none runs twice at once, whichever process is killed at whichever step."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.flows.dying import STEPS
from tests.flows.harness import FLOW
from tests.flows.queue_harness import Queue
from tests.flows.queue_harness import queue as make_queue
from tests.postgres import postgres

pytestmark = FLOW

SEED = int(os.environ.get("MAGNET_CRASH_SEED", "1"))
API_STEPS = ("submitted over HTTP",)
JOB_FOR = {"queued again": "flaky", "stop requested": "60"}
"""Kind of job that reaches a step; for the other steps it sleeps a moment."""


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with make_queue(tmp_path) as queue:
        queue.start_ray()
        queue.start_api()
        yield queue


@pytest.mark.long
def test_it_survives_a_kill_at_every_step_of_a_jobs_life(queue: Queue) -> None:
    survive([(step, when) for step in STEPS for when in ("before", "after")], queue)


def test_it_survives_kills_on_postgres_and_of_postgres(tmp_path: Path) -> None:
    steps = random.Random(SEED).sample([(step, when) for step in STEPS for when in ("before", "after")], 4)
    with postgres() as server, make_queue(tmp_path, server.url) as queue:
        queue.start_ray()
        queue.start_api()
        survive(steps, queue)
        queue.start_dispatcher()
        job = queue.submit("2-restart")
        queue.wait_for_start("2-restart")
        server.stop()
        time.sleep(1)
        server.start()
        assert queue.client.wait(job.id, timeout_s=30).state == "done"
        assert queue.trace("2-restart") == {"start": 1, "end": 1}


def survive(steps: list[tuple[str, str]], queue: Queue) -> None:
    """Kill at each step, in random order, while the jobs of the steps before still run."""
    order = random.Random(SEED).sample(steps, len(steps))
    jobs: dict[str, tuple[str, str, str]] = {}
    for number, (step, when) in enumerate(order):
        name = f"{JOB_FOR.get(step, '0.5')}-{number}"
        if step in API_STEPS:
            job_id = submit_to_a_dying_api(queue, name, step, when)
        else:
            queue.start_dispatcher(step, when)
            job_id = queue.submit(name).id
            if step == "stop requested":
                queue.wait_for_start(name)
                queue.client.cancel(job_id)
            queue.wait_for_death("dispatch")
        jobs[job_id] = (name, step, when)
    queue.start_dispatcher()
    print("\n| killed | step | the job | attempts | starts of its command |\n| --- | --- | --- | --- | --- |")
    for job_id, (name, step, when) in jobs.items():
        job, trace = queue.client.wait(job_id, timeout_s=60), queue.trace(name)
        print(f"| {when} | {step} | {job.state} | {job.attempt} | {trace['start']} |")
        assert job.state == ("cancelled" if step == "stop requested" else "done"), (name, job)
        assert job.attempt == (2 if step == "queued again" else 1)
        assert (trace["start"], trace["TWICE"]) == (job.attempt, 0)
    assert len(queue.client.jobs(limit=500).jobs) == len(jobs)
    starts = queue.starts.read_text().split()
    assert len(starts) == len(set(starts))
    queue.parts["dispatch"].process.kill()
    queue.parts["dispatch"].process.wait()


def submit_to_a_dying_api(queue: Queue, name: str, step: str, when: str) -> str:
    """Submit a job while the API kills itself, so that the client repeats it under the same key; return its id."""
    queue.kill("api")
    queue.start_api(step, when)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(queue.submit, name)
        queue.wait_for_death("api")
        queue.start_api()
        return answer.result(timeout=60).id


def test_a_job_whose_machine_dies_is_started_again(queue: Queue) -> None:
    queue.start_dispatcher()
    print("\n| killed with SIGKILL | the job | attempts | why the first one ended |\n| --- | --- | --- | --- |")
    for victim in ("command", "supervisor", "ray", "everything"):
        job = queue.submit(f"1-{victim}")
        command = psutil.Process(queue.wait_for_start(f"1-{victim}"))
        if victim == "command":
            command.kill()
        elif victim == "supervisor":
            supervisor = command.parent()
            assert supervisor is not None
            supervisor.kill()
        else:
            for part in ("ray",) if victim == "ray" else ("ray", "api", "dispatch"):
                queue.kill(part)
            queue.start_ray()
            if victim == "everything":
                queue.start_api()
                queue.start_dispatcher()
        ended = queue.client.wait(job.id, timeout_s=60)
        print(f"| {victim} | {ended.state} | {ended.attempt} | {ended.attempts[0].reason} |")
        assert (ended.state, ended.attempt) == ("done", 2)
        assert queue.trace(f"1-{victim}") == {"start": 2, "end": 1}


def test_cancelling_a_running_job_takes_seconds_and_leaves_no_process(queue: Queue) -> None:
    queue.start_dispatcher()
    job = queue.submit("60-long")
    command = queue.wait_for_start("60-long")
    started_s = time.monotonic()
    assert queue.client.cancel(job.id).state == "cancelling"
    assert queue.client.wait(job.id, timeout_s=20, look_s=0.1).state == "cancelled"
    took_s = time.monotonic() - started_s
    print(f"\ncancelled after {took_s:.1f} s")
    assert took_s < 10
    assert not psutil.pid_exists(command)


def test_a_waiting_job_is_cancelled_at_once_and_never_starts(queue: Queue) -> None:
    job = queue.submit("0.1-never")  # no dispatcher runs
    assert queue.client.cancel(job.id).state == "cancelled"
    queue.start_dispatcher()
    queue.client.wait(queue.submit("0.1-other").id, timeout_s=30)
    assert not queue.trace("0.1-never")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("bad-1", "the manifest is wrong in line 7"), ("hopeless-1", "step 7: loss nan")],
)
def test_a_job_that_would_fail_in_the_same_way_is_not_retried(queue: Queue, name: str, reason: str) -> None:
    """Ray reports FAILED for it, as it does for a job whose second attempt succeeds."""
    queue.start_dispatcher()
    flaky = queue.submit("flaky-1")
    job = queue.client.wait(queue.submit(name).id, timeout_s=30)
    assert (job.state, job.attempt, job.reason) == ("failed", 1, reason)
    retried = queue.client.wait(flaky.id, timeout_s=30)
    assert (retried.state, retried.attempt) == ("done", 2)


def test_an_expired_job_is_removed_with_its_workflow(queue: Queue) -> None:
    queue.start_dispatcher()
    job = queue.client.wait(queue.submit("0.1-old").id, timeout_s=30)
    queue.kill("dispatch")
    time.sleep(1)  # about 0.00001 days
    queue.config.write_text(f"{queue.config.read_text()}keep_days: 0.00001\n")
    queue.start_dispatcher()
    queue.parts["dispatch"].wait_for(lambda: not queue.client.jobs().jobs, 30)
    workflows = f"{queue.settings.database_url.removeprefix('sqlite:///')}-workflows"
    with closing(sqlite3.connect(workflows)) as database:
        names = [name for (name,) in database.execute("SELECT workflow_uuid FROM workflow_status")]
    assert not [name for name in names if name.startswith(job.id)]
