"""The API: rights of users, refused requests and their messages."""

from __future__ import annotations

import io
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.client import Client, ServiceError
from service.queue.requests import Check
from service.results import scores
from tests.service.api.api_app import Api, make_api
from tests.service.results.score_row import make_scored_row


@pytest.fixture
def app(tmp_path: Path) -> Api:
    return make_api(tmp_path)


def test_a_job_is_submitted_listed_and_shown(app: Api) -> None:
    sent = app.submit(priority=3)
    assert sent.status_code == 201
    job_id = sent.json()["id"]
    assert sent.headers["location"] == f"/v1/jobs/{job_id}"
    shown = app.http.get(f"/v1/jobs/{job_id}", headers=app.headers["ada"]).json()
    assert (shown["state"], shown["priority"], shown["owner"], shown["attempts"]) == ("queued", 3, "ada", [])
    assert shown["request"]["manifest"] == f"{app.lab}/a.csv"


def test_a_repeated_key_returns_the_first_job_and_refuses_another_request(app: Api) -> None:
    first, second = app.submit(key="k"), app.submit(key="k")
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert app.submit("b.csv", key="k").status_code == 409
    assert app.submit("b.csv", who="bob", key="k").status_code == 201  # keys belong to users


def test_pages_list_every_job_once(app: Api) -> None:
    ids = [app.submit(f"{k}.csv").json()["id"] for k in range(5)]
    listed, before = [], None
    while True:
        params = {"limit": 2} | ({"before": before} if before else {})
        page = app.http.get("/v1/jobs", params=params, headers=app.headers["ada"]).json()
        listed += [job["id"] for job in page["jobs"]]
        before = page["next"]
        if before is None:
            break
    assert listed == ids[::-1]


def test_users_see_their_own_jobs_and_administrators_see_all(app: Api) -> None:
    job_id = app.submit(who="ada").json()["id"]
    statuses = {who: app.http.get(f"/v1/jobs/{job_id}", headers=app.headers[who]).status_code for who in app.headers}
    assert statuses == {"ada": 200, "bob": 404, "eve": 404, "pia": 404, "root": 200}
    lists = {who: len(app.http.get("/v1/jobs", headers=app.headers[who]).json()["jobs"]) for who in app.headers}
    assert lists == {"ada": 1, "bob": 0, "eve": 0, "pia": 0, "root": 1}
    assert app.http.post(f"/v1/jobs/{job_id}/cancel", headers=app.headers["bob"]).status_code == 404


@pytest.mark.parametrize(
    ("who", "status"), [(None, 401), ("eve", 403), ("ada", 201)], ids=["no token", "read only", "submit"]
)
def test_a_submission_needs_the_scope_submit(app: Api, who: str | None, status: int) -> None:
    body = {"job": {"kind": "check", "manifest": f"{app.lab}/a.csv"}}
    assert app.http.post("/v1/jobs", json=body, headers=app.headers[who] if who else {}).status_code == status


def test_an_unknown_or_revoked_token_is_refused(app: Api) -> None:
    token = app.http.post("/v1/tokens", json={"owner": "x", "scope": "read"}, headers=app.headers["root"]).json()
    header = {"Authorization": f"Bearer {token['secret']}"}
    assert app.http.get("/v1/jobs", headers=header).status_code == 200
    assert app.http.delete(f"/v1/tokens/{token['id']}", headers=app.headers["root"]).status_code == 204
    assert app.http.get("/v1/jobs", headers=header).status_code == 401
    assert app.http.get("/v1/jobs", headers={"Authorization": "Bearer magnet_x"}).status_code == 401
    assert (
        app.http.post("/v1/tokens", json={"owner": "x", "scope": "read"}, headers=app.headers["ada"]).status_code == 403
    )


def test_the_database_contains_no_token(app: Api, tmp_path: Path) -> None:
    secret = app.headers["ada"]["Authorization"].removeprefix("Bearer ")
    with sqlite3.connect(tmp_path / "service/private/queue.db") as connection:
        dump = "\n".join(connection.iterdump())
    connection.close()
    assert "ada" in dump
    assert secret not in dump


@pytest.mark.parametrize(
    "place",
    [
        "/etc/passwd",
        "s3://other/a.csv",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "{lab}/../x.csv",
        "{lab}-other/x.csv",
        "{storage}/x.csv",
        "{storage}/private/queue.db",
        "{storage}/users/bob/jobs/x/scores/scores.csv",
    ],
)
def test_places_outside_the_prefixes_are_refused(app: Api, place: str) -> None:
    body = {"job": {"kind": "check", "manifest": place.format(storage=app.settings.storage, lab=app.lab)}}
    answer = app.http.post("/v1/jobs", json=body, headers=app.headers["ada"])
    assert answer.status_code == 403
    assert "lies outside the places" in answer.json()["detail"]


def test_a_link_out_of_a_place_is_refused(app: Api, tmp_path: Path) -> None:
    (tmp_path / "lab" / "link").symlink_to("/etc")
    assert app.submit("link/passwd").status_code == 403


def test_pickled_weights_and_foreign_networks_are_refused(app: Api) -> None:
    for classifier in ({"weights": f"{app.lab}/w.pth"}, {"encoder": "hf-hub:x/y"}):
        job = {"kind": "train", "manifest": f"{app.lab}/a.csv"}
        body = {"job": job | {"settings": {"model": {"classifier": classifier}}}}
        assert app.http.post("/v1/jobs", json=body, headers=app.headers["ada"]).status_code == 422


def test_unknown_settings_are_named(app: Api) -> None:
    job = {"kind": "train", "manifest": f"{app.lab}/a.csv", "settings": {"recipe": {"epoch": 3}}}
    answer = app.http.post("/v1/jobs", json={"job": job}, headers=app.headers["ada"])
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert "settings.recipe.epoch" in answer.json()["detail"]
    assert answer.json()["to_do"]


def test_a_trainings_settings_start_from_their_preset(app: Api) -> None:
    """As in a YAML file: 16 slides per step are the paper's batch for three layers."""
    job = {"kind": "train", "manifest": f"{app.lab}/a.csv", "settings": {"preset": "paper"}}
    created = app.http.post("/v1/jobs", json={"job": job}, headers=app.headers["ada"]).json()
    assert created["request"]["settings"]["recipe"]["batch"] == 16


def test_a_large_body_is_refused_before_it_is_read(tmp_path: Path) -> None:
    app = make_api(tmp_path, max_body_bytes=1000)
    assert app.submit().status_code == 201
    answer = app.submit("x" * 1200)
    assert (answer.status_code, answer.json()["status"]) == (413, 413)
    chunks = (b" " * 400 for _ in range(10))  # without a Content-Length header
    assert app.http.post("/v1/jobs", content=chunks, headers=app.headers["ada"]).status_code == 413


def test_a_user_above_the_rate_is_refused(tmp_path: Path) -> None:
    app = make_api(tmp_path, requests_per_minute=3)
    statuses = [app.http.get("/v1/jobs", headers=app.headers["ada"]).status_code for _ in range(7)]
    assert statuses == [200] * 6 + [429]  # a burst is twice the rate
    assert app.http.get("/v1/jobs", headers=app.headers["bob"]).status_code == 200


def test_no_user_queues_more_than_the_limit(tmp_path: Path) -> None:
    app = make_api(tmp_path, max_queued_per_user=2)
    assert [app.submit(f"{k}.csv").status_code for k in range(3)] == [201, 201, 429]
    assert app.submit(who="bob").status_code == 201


def test_readiness_fails_while_no_dispatcher_runs(app: Api) -> None:
    assert app.http.get("/healthz").status_code == 200
    assert app.http.get("/readyz").status_code == 503
    app.submit()
    assert 'magnet_jobs{kind="check",state="queued"} 1.0' in app.http.get("/metrics").text


def test_a_queued_job_is_cancelled_and_retried_with_an_event_each(app: Api) -> None:
    job_id, ada = app.submit().json()["id"], app.headers["ada"]
    assert app.http.post(f"/v1/jobs/{job_id}/retry", headers=ada).status_code == 409
    assert app.http.post(f"/v1/jobs/{job_id}/cancel", headers=ada).json()["state"] == "cancelled"
    assert app.http.post(f"/v1/jobs/{job_id}/retry", headers=ada).json()["state"] == "queued"
    url = f"/v1/jobs/{job_id}/events?follow=false"
    text = app.http.get(url, headers=ada).text
    assert [line for line in text.splitlines() if line.startswith("event")] == [
        "event: queued",
        "event: cancelled",
        "event: queued",
    ]
    later = app.http.get(url, headers=ada | {"Last-Event-ID": "2"}).text
    assert later.count("event:") == 1


def test_results_of_a_scoring_are_read(app: Api, tmp_path: Path) -> None:
    job = {"kind": "score", "manifest": f"{app.lab}/a.csv", "model": "models:/magnet@champion"}
    job_id = app.http.post("/v1/jobs", json={"job": job}, headers=app.headers["ada"]).json()["id"]
    url, out, ada = f"/v1/jobs/{job_id}", f"{app.settings.storage}/users/ada/jobs/{job_id}/scores", app.headers["ada"]
    assert app.http.get(f"{url}/scores", headers=ada).status_code == 404
    table = pa.Table.from_pylist([make_scored_row("s 1", float("nan"))], schema=scores.SCHEMA)
    scores.write_table(f"{out}/scores.parquet", table)
    scores.write_csv(f"{out}/scores.csv", table.drop_columns(["regions"]))
    (Path(out) / "pictures").mkdir()
    (Path(out) / "pictures" / "s 1.jpg").write_bytes(b"jpeg")
    as_json = app.http.get(f"{url}/scores", headers=ada).json()
    assert (as_json["total"], as_json["rows"][0]["slide_id"], as_json["rows"][0]["probability"]) == (1, "s 1", None)
    parquet = app.http.get(f"{url}/scores?format=parquet", headers=ada).content
    assert pq.read_table(io.BytesIO(parquet)).num_rows == 1
    assert app.http.get(f"{url}/scores?format=csv", headers=ada).text.startswith("slide_id,")
    assert app.http.get(f"{url}/slides/s 1/picture", headers=ada).content == b"jpeg"
    assert app.http.get(f"{url}/slides/s 2/picture", headers=ada).status_code == 404
    assert app.http.get(f"{url}/slides/..%2f..%2fqueue.db/picture", headers=ada).status_code == 404
    assert app.http.get(f"{url}/slides/s 1/picture", headers=app.headers["bob"]).status_code == 404


def test_watches_and_schedules_are_added_listed_and_removed(app: Api, tmp_path: Path) -> None:
    ada = app.headers["ada"]
    watch = {"what": "watch", "folder": f"{app.lab}/in/", "model": "models:/magnet@champion"}
    job = {"kind": "check", "manifest": f"{app.lab}/a.csv"}
    schedule = {"what": "schedule", "cron": "0 2 * * *", "job": job}
    bodies = [watch, schedule, schedule | {"cron": "0 2 * *"}, watch | {"folder": "/etc/"}]
    created = [app.http.post("/v1/recurring", json=body, headers=ada) for body in bodies]
    assert [answer.status_code for answer in created] == [201, 201, 422, 403]
    url = f"/v1/recurring/{created[0].json()['id']}"
    assert app.http.delete(url, headers=app.headers["bob"]).status_code == 404
    assert app.http.delete(url, headers=ada).status_code == 204
    assert [entry["what"] for entry in app.http.get("/v1/recurring", headers=ada).json()] == ["schedule"]


def test_the_client_calls_the_api_and_shows_its_instructions(app: Api) -> None:
    secret = app.headers["ada"]["Authorization"].removeprefix("Bearer ")
    with Client("http://testserver", secret, transport=app.http._transport) as client:
        job = client.submit(Check(manifest=f"{app.lab}/a.csv"), priority=2)
        assert client.prioritise(job.id, -2).priority == -2
        assert [listed.id for listed in client.jobs(kind="check").jobs] == [job.id]
        assert client.cancel(job.id).state == "cancelled"
        assert "".join(client.logs(job.id)) == ""
        with pytest.raises(ServiceError, match=r"lies outside the places .* name a place that jobs may use"):
            client.submit(Check(manifest="/etc/passwd"))
    with Client("http://127.0.0.1:1", None, patience_s=0) as client, pytest.raises(ServiceError, match="magnet serve"):
        client.jobs()
