"""No job is lost, and none runs twice at once, whoever is killed at whatever step of its life."""

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
from tests.flows.queue_harness import Queue, queue
from tests.postgres import postgres

pytestmark = FLOW

SEED = int(os.environ.get("MAGNET_CRASH_SEED", "1"))
API_STEPS = ("submitted over HTTP",)
JOB_FOR = {"queued again": "flaky", "told to stop": "60"}
"""What a job must do to reach a step; the others sleep a moment."""


@pytest.fixture
def own_queue(tmp_path: Path) -> Iterator[Queue]:
    with queue(tmp_path) as own:
        own.start_ray()
        own.start_api()
        yield own


@pytest.mark.long
def test_it_survives_a_kill_at_every_step_of_a_jobs_life(own_queue: Queue) -> None:
    survive([(step, when) for step in STEPS for when in ("before", "after")], own_queue)


def test_it_survives_kills_on_postgres_and_of_postgres(tmp_path: Path) -> None:
    steps = random.Random(SEED).sample([(step, when) for step in STEPS for when in ("before", "after")], 4)
    with postgres() as server, queue(tmp_path, server.url) as own:
        own.start_ray()
        own.start_api()
        survive(steps, own)
        own.start_dispatcher()
        job = own.submit("2-restart")
        own.wait_for_start("2-restart")
        server.stop()
        time.sleep(1)
        server.start()
        assert own.client.wait(job.id, timeout_s=30).state == "done"
        assert own.trace("2-restart") == {"start": 1, "end": 1}


def survive(steps: list[tuple[str, str]], own: Queue) -> None:
    """Kill at each step, in random order, while jobs of the steps before are still on their way."""
    order = random.Random(SEED).sample(steps, len(steps))
    jobs: dict[str, tuple[str, str, str]] = {}
    for number, (step, when) in enumerate(order):
        name = f"{JOB_FOR.get(step, '0.5')}-{number}"
        if step in API_STEPS:
            job_id = submitted_to_a_dying_api(own, name, step, when)
        else:
            own.start_dispatcher(step, when)
            job_id = own.submit(name).id
            if step == "told to stop":
                own.wait_for_start(name)
                own.client.cancel(job_id)
            own.died("dispatch")
        jobs[job_id] = (name, step, when)
    own.start_dispatcher()
    print("\n| killed | step | the job | attempts | starts of its command |\n| --- | --- | --- | --- | --- |")
    for job_id, (name, step, when) in jobs.items():
        job, trace = own.client.wait(job_id, timeout_s=60), own.trace(name)
        print(f"| {when} | {step} | {job.state} | {job.attempt} | {trace['start']} |")
        assert job.state == ("cancelled" if step == "told to stop" else "done"), (name, job)
        assert job.attempt == (2 if step == "queued again" else 1)
        assert (trace["start"], trace["TWICE"]) == (job.attempt, 0)
    assert len(own.client.jobs(limit=500).jobs) == len(jobs)
    starts = own.starts.read_text().split()
    assert len(starts) == len(set(starts))
    own.parts["dispatch"].process.kill()
    own.parts["dispatch"].process.wait()


def submitted_to_a_dying_api(own: Queue, name: str, step: str, when: str) -> str:
    """The id of a job whose submission killed the API, which the client sent again under the same key."""
    own.kill("api")
    own.start_api(step, when)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(own.submit, name)
        own.died("api")
        own.start_api()
        return answer.result(timeout=60).id


def test_a_job_whose_machine_dies_is_started_again(own_queue: Queue) -> None:
    own = own_queue
    own.start_dispatcher()
    print("\n| killed with SIGKILL | the job | attempts | why the first one ended |\n| --- | --- | --- | --- |")
    for victim in ("command", "witness", "ray", "everything"):
        job = own.submit(f"1-{victim}")
        command = psutil.Process(own.wait_for_start(f"1-{victim}"))
        if victim == "command":
            command.kill()
        elif victim == "witness":
            witness = command.parent()
            assert witness is not None
            witness.kill()
        else:
            for part in ("ray",) if victim == "ray" else ("ray", "api", "dispatch"):
                own.kill(part)
            own.start_ray()
            if victim == "everything":
                own.start_api()
                own.start_dispatcher()
        ended = own.client.wait(job.id, timeout_s=60)
        print(f"| {victim} | {ended.state} | {ended.attempt} | {ended.attempts[0].reason} |")
        assert (ended.state, ended.attempt) == ("done", 2)
        assert own.trace(f"1-{victim}") == {"start": 2, "end": 1}


def test_cancelling_a_running_job_takes_seconds_and_leaves_no_process(own_queue: Queue) -> None:
    own = own_queue
    own.start_dispatcher()
    job = own.submit("60-long")
    command = own.wait_for_start("60-long")
    began_s = time.monotonic()
    assert own.client.cancel(job.id).state == "cancelling"
    assert own.client.wait(job.id, timeout_s=20, look_s=0.1).state == "cancelled"
    took_s = time.monotonic() - began_s
    print(f"\ncancelled after {took_s:.1f} s")
    assert took_s < 10
    assert not psutil.pid_exists(command)


def test_a_waiting_job_is_cancelled_at_once_and_never_starts(own_queue: Queue) -> None:
    job = own_queue.submit("0.1-never")  # no dispatcher runs
    assert own_queue.client.cancel(job.id).state == "cancelled"
    own_queue.start_dispatcher()
    own_queue.client.wait(own_queue.submit("0.1-other").id, timeout_s=30)
    assert not own_queue.trace("0.1-never")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("bad-1", "the manifest is wrong in line 7"), ("hopeless-1", "step 7: loss nan")],
)
def test_what_would_end_alike_is_not_tried_again(own_queue: Queue, name: str, reason: str) -> None:
    """Though Ray says no more than FAILED of it, as of a job that its second attempt mends."""
    own_queue.start_dispatcher()
    flaky = own_queue.submit("flaky-1")
    job = own_queue.client.wait(own_queue.submit(name).id, timeout_s=30)
    assert (job.state, job.attempt, job.reason) == ("failed", 1, reason)
    mended = own_queue.client.wait(flaky.id, timeout_s=30)
    assert (mended.state, mended.attempt) == ("done", 2)


def test_a_job_that_ended_long_ago_is_forgotten_with_its_workflow(own_queue: Queue) -> None:
    own = own_queue
    own.start_dispatcher()
    job = own.client.wait(own.submit("0.1-old").id, timeout_s=30)
    own.kill("dispatch")
    time.sleep(1)  # about 0.00001 days
    own.config.write_text(f"{own.config.read_text()}keep_days: 0.00001\n")
    own.start_dispatcher()
    own.parts["dispatch"].wait_for(lambda: not own.client.jobs().jobs, 30)
    workflows = f"{own.settings.database_url.removeprefix('sqlite:///')}-workflows"
    with closing(sqlite3.connect(workflows)) as database:
        names = [name for (name,) in database.execute("SELECT workflow_uuid FROM workflow_status")]
    assert not [name for name in names if name.startswith(job.id)]
