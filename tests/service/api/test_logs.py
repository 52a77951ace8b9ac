"""Logs and events: read in pieces without gaps, or followed at little cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import storage
from service.api import log_stream
from service.progress.record import Progress
from service.queue.attempt_folder import PART_BYTES, AttemptFolder, Heartbeat, attempt_folder
from service.queue.store import Limits
from tests.service.api.api_app import Api, make_api

pytestmark = pytest.mark.slow

NO_LIMITS = Limits({"check": 9, "train": 9, "tune": 9, "score": 9}, 9)


@pytest.fixture
def app(tmp_path: Path) -> Api:
    return make_api(tmp_path)


def start_job(app: Api) -> tuple[str, AttemptFolder]:
    """Submit a job and start an attempt; return the job's ID and the attempt's folder."""
    job_id = app.submit().json()["id"]
    app.store.admit(NO_LIMITS)
    app.store.mark_running(job_id, 1)
    return job_id, attempt_folder(app.settings.job_folder("ada", job_id), 1)


def test_a_log_continues_at_the_byte_where_it_ended(app: Api) -> None:
    job_id, folder = start_job(app)
    url, ada = f"/v1/jobs/{job_id}/logs", app.headers["ada"]
    folder.write_log(0, "größer\n".encode())
    first = app.http.get(url, headers=ada)
    assert (first.headers["x-log-attempt"], first.headers["x-log-next"]) == ("1", "9")
    assert first.headers["x-job-state"] == "running"
    folder.write_log(0, "größer\nnext\n".encode())
    app.store.end_attempt(job_id, 1, state="done", reason=None, exit_code=0)
    then = app.http.get(url, params={"attempt": 1, "offset": 9}, headers=ada)
    assert (then.content, then.headers["x-log-next"], then.headers["x-job-state"]) == (b"next\n", "14", "done")
    last = app.http.get(url, params={"attempt": 1, "offset": 14}, headers=ada)
    assert (last.content, last.headers["x-log-next"]) == (b"", "14")


def test_a_long_log_is_read_completely_in_pieces(app: Api) -> None:
    job_id, folder = start_job(app)
    text = b"".join(b"%09d\n" % k for k in range(250_000))
    for start in range(0, len(text), PART_BYTES):
        folder.write_log(start // PART_BYTES, text[start : start + PART_BYTES])
    received, offset = b"", 0
    while True:
        answer = app.http.get(f"/v1/jobs/{job_id}/logs", params={"offset": offset}, headers=app.headers["ada"])
        if not answer.content:
            break
        received, offset = received + answer.content, int(answer.headers["x-log-next"])
        assert len(answer.content) <= log_stream.LOG_BYTES
    assert received == text


def test_a_job_without_an_attempt_has_an_empty_log(app: Api) -> None:
    job_id = app.submit().json()["id"]
    answer = app.http.get(f"/v1/jobs/{job_id}/logs", headers=app.headers["ada"])
    assert (answer.content, answer.headers["x-log-attempt"], answer.headers["x-log-next"]) == (b"", "0", "0")
    assert app.http.get(f"/v1/jobs/{job_id}/logs?attempt=1", headers=app.headers["ada"]).status_code == 404


def test_a_followed_log_contains_all_attempts(app: Api) -> None:
    job_id, folder = start_job(app)
    folder.write_log(0, b"one\n")
    app.store.requeue(job_id, 1, reason="lost", exit_code=None, wait_s=0.0)
    app.store.admit(NO_LIMITS)
    attempt_folder(app.settings.job_folder("ada", job_id), 2).write_log(0, b"two\n")
    app.store.mark_running(job_id, 2)
    app.store.end_attempt(job_id, 2, state="done", reason=None, exit_code=0)
    text = app.http.get(f"/v1/jobs/{job_id}/logs?follow=true&attempt=1", headers=app.headers["ada"]).text
    assert text == "one\n--- attempt 2 ---\ntwo\n"


def test_a_log_that_does_not_grow_is_not_read_again(app: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, folder = start_job(app)
    folder.write_log(0, b"one\n")
    folder.write_beat(Heartbeat(count=1, log_bytes=4))
    app.store.record_heartbeat(job_id, 1, Progress(activity="a"))
    names, looks, read_bytes, get_job = [], [], storage.read_bytes, app.http.app.state.store.job

    def counting_read(uri: str, deadline_s: float | None = None) -> bytes:
        names.append(storage.name(uri))
        return read_bytes(uri, deadline_s)

    def counting_get_job(job_id: str) -> object:
        looks.append(job_id)
        if len(looks) == 6:  # another heartbeat, with an unchanged log
            folder.write_beat(Heartbeat(count=2, log_bytes=4))
            app.store.record_heartbeat(job_id, 1, Progress(activity="b"))
        if len(looks) == 12:
            app.store.end_attempt(job_id, 1, state="done", reason=None, exit_code=0)
        return get_job(job_id)

    monkeypatch.setattr(storage, "read_bytes", counting_read)
    monkeypatch.setattr(app.http.app.state.store, "job", counting_get_job)
    monkeypatch.setattr(log_stream, "POLL_S", 0.001)
    text = app.http.get(f"/v1/jobs/{job_id}/logs?follow=true", headers=app.headers["ada"]).text
    assert text == "one\n"
    assert len(looks) >= 12
    assert names.count("00000.txt") == 1
    assert names.count("beat.json") == 4  # at first, after data was sent, at the second heartbeat, at the end


def test_each_of_many_events_is_sent_once(app: Api) -> None:
    job_id = app.submit().json()["id"]
    for k in range(600):
        app.store.set_priority(job_id, k % 5)
    app.store.cancel(job_id)
    text = app.http.get(f"/v1/jobs/{job_id}/events", headers=app.headers["ada"]).text
    ids = [int(line.removeprefix("id: ")) for line in text.splitlines() if line.startswith("id: ")]
    assert len(ids) == len(set(ids)) == 602
    assert ids == sorted(ids)
