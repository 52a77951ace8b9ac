"""Results belong to the job that wrote them and to its user, also in a folder that other users can write to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.queue import audit
from service.queue.store import Limits
from service.settings.service import Place
from tests.service.api.api_app import Api, make_api

pytestmark = pytest.mark.slow

NO_LIMITS = Limits({"check": 9, "train": 9, "tune": 9, "score": 9}, 9)


@pytest.fixture
def app(tmp_path: Path) -> Api:
    return make_api(tmp_path)


def submit_scoring(app: Api, who: str, out: str | None = None) -> Any:
    job = {"kind": "score", "manifest": f"{app.lab}/a.csv", "model": "models:/magnet@champion", "out": out}
    return app.http.post("/v1/jobs", json={"job": job}, headers=app.headers[who])


def finish(app: Api, job_id: str, state: str = "done") -> None:
    app.store.admit(NO_LIMITS)
    app.store.end_attempt(job_id, app.store.job(job_id).attempt, state=state, reason=None, exit_code=0)


def write_results(folder: Path, text: str = "by ada") -> None:
    for name in ("scores.csv", "report.html", "pictures/s.jpg", "overlays/s.jpg", "geojson/s.geojson"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


PATHS = ("scores?format=csv", "report", "slides/s/picture", "slides/s/overlay", "slides/s/geojson")


def read(app: Api, who: str, job_id: str) -> list[int]:
    return [app.http.get(f"/v1/jobs/{job_id}/{path}", headers=app.headers[who]).status_code for path in PATHS]


def test_results_are_read_by_their_owner_once_the_job_is_done(app: Api) -> None:
    out = f"{app.lab}/out"
    job_id = submit_scoring(app, "ada", out).json()["id"]
    write_results(Path(out), "by somebody else")
    assert read(app, "ada", job_id) == [404] * 5
    finish(app, job_id, "failed")
    assert read(app, "ada", job_id) == [404] * 5
    app.store.retry(job_id)
    finish(app, job_id)
    assert read(app, "ada", job_id) == [200] * 5
    assert read(app, "bob", job_id) == [404] * 5
    assert read(app, "root", job_id) == [200] * 5


@pytest.mark.parametrize(
    "spelled", ["{lab}/out", "{lab}/out/", "{lab}//out", "{lab}/x/../out", "{lab}/link", "file://{lab}/out"]
)
def test_an_output_folder_of_another_users_job_is_refused(app: Api, spelled: str) -> None:
    out = Path(app.lab) / "out"
    write_results(out)
    (Path(app.lab) / "link").symlink_to(out)
    job_id = submit_scoring(app, "ada", str(out)).json()["id"]
    finish(app, job_id)
    answer = submit_scoring(app, "bob", spelled.format(lab=app.lab))
    assert answer.status_code == 409
    assert "another user's job writes to" in answer.json()["detail"]
    assert submit_scoring(app, "ada", str(out)).status_code == 201  # a user may continue a scoring
    assert submit_scoring(app, "bob", f"{app.lab}/other").status_code == 201
    assert len(app.http.get("/v1/jobs", headers=app.headers["bob"]).json()["jobs"]) == 1


@pytest.mark.parametrize("state", ["queued", "done"])
def test_a_link_to_another_users_folder_is_not_followed(app: Api, state: str) -> None:
    secret = submit_scoring(app, "ada").json()["id"]
    folder = Path(app.settings.job_folder("ada", secret)) / "scores"
    write_results(folder)
    out = Path(app.lab) / "bobs"
    job_id = submit_scoring(app, "bob", str(out)).json()["id"]
    out.symlink_to(folder)
    if state == "done":
        finish(app, job_id)
    statuses = read(app, "bob", job_id)
    assert statuses == ([403] * 5 if state == "done" else [404] * 5)


def test_a_link_to_a_file_outside_is_not_followed(app: Api, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    out = Path(app.lab) / "bobs"
    job_id = submit_scoring(app, "bob", str(out)).json()["id"]
    finish(app, job_id)
    write_results(out)
    (out / "report.html").unlink()
    (out / "report.html").symlink_to(tmp_path / "token")
    assert read(app, "bob", job_id) == [200, 403, 200, 200, 200]


def test_a_closed_place_is_no_longer_read(tmp_path: Path) -> None:
    app = make_api(tmp_path)
    job_id = submit_scoring(app, "ada", f"{app.lab}/out").json()["id"]
    finish(app, job_id)
    write_results(Path(app.lab) / "out")
    assert read(app, "ada", job_id)[0] == 200
    app.http.app.state.settings = make_api(tmp_path, places=(Place(prefix=app.lab, read=("bob",)),)).settings
    assert read(app, "ada", job_id) == [403] * 5


def test_reads_of_results_are_recorded_and_lists_are_not(app: Api) -> None:
    job_id = submit_scoring(app, "ada").json()["id"]
    write_results(Path(app.settings.job_folder("ada", job_id)) / "scores")
    assert read(app, "root", job_id) == [200] * 5
    app.http.get("/v1/jobs", headers=app.headers["ada"])
    app.http.get(f"/v1/jobs/{job_id}/logs", headers=app.headers["ada"])
    rows = [
        (row.actor, row.object, row.detail) for row in audit.rows(app.store.database) if row.action == "result.read"
    ]
    names = ("scores.csv", "report.html", "s.jpg", "s.jpg", "s.geojson")
    assert rows == [("root", job_id, name) for name in names]


def test_the_report_cannot_run_scripts(app: Api) -> None:
    job_id = submit_scoring(app, "ada").json()["id"]
    write_results(Path(app.settings.job_folder("ada", job_id)) / "scores", "<script>alert(1)</script>")
    answer = app.http.get(f"/v1/jobs/{job_id}/report", headers=app.headers["ada"])
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_the_best_settings_of_a_search_are_read(app: Api) -> None:
    job = {"kind": "tune", "manifest": f"{app.lab}/a.csv"}
    job_id = app.http.post("/v1/jobs", json={"job": job}, headers=app.headers["ada"]).json()["id"]
    url = f"/v1/jobs/{job_id}/best"
    answer = app.http.get(url, headers=app.headers["ada"])
    assert (answer.status_code, "has no best.yaml; it is queued" in answer.json()["detail"]) == (404, True)
    best = Path(app.settings.runs("ada")) / job_id / "best.yaml"
    best.parent.mkdir(parents=True)
    best.write_text("recipe: {epochs: 3}\n")
    answer = app.http.get(url, headers=app.headers["ada"])
    assert (answer.headers["content-type"], answer.text) == ("application/yaml", "recipe: {epochs: 3}\n")
    assert app.http.get(url, headers=app.headers["bob"]).status_code == 404
    other = app.submit().json()["id"]
    assert "only searches" in app.http.get(f"/v1/jobs/{other}/best", headers=app.headers["ada"]).json()["detail"]


def test_only_a_job_that_has_ended_is_deleted(app: Api) -> None:
    job_id, ada = app.submit().json()["id"], app.headers["ada"]
    url = f"/v1/jobs/{job_id}"
    assert app.http.delete(url, headers=ada).status_code == 409
    app.http.post(f"{url}/cancel", headers=ada)
    assert app.http.delete(url, headers=app.headers["bob"]).status_code == 404
    assert app.http.delete(url, headers=app.headers["eve"]).status_code == 403
    answer = app.http.delete(url, headers=ada)
    assert (answer.status_code, answer.json()["delete_requested"]) == (202, True)
    assert app.store.job(job_id).delete_requested == 1
    assert app.http.delete(url, headers=ada).status_code == 202
    assert app.http.post(f"{url}/retry", headers=ada).status_code == 409


@pytest.mark.parametrize(
    "job_id", ["x", "train-20260101-000000-0000000", "check-20260101-000000-00000000", "a%00b", "ü", "x" * 3000]
)
def test_a_malformed_job_id_is_answered_like_an_unknown_one(app: Api, job_id: str) -> None:
    for path in ("", "/logs", "/events", "/scores", "/best"):
        answer = app.http.get(f"/v1/jobs/{job_id}{path}", headers=app.headers["ada"])
        assert answer.status_code == 404
        assert answer.json()["detail"].startswith("no job '")
        assert answer.json()["detail"].endswith("`magnet jobs` lists them")


def test_a_job_of_another_user_is_answered_like_a_missing_one(app: Api) -> None:
    job_id = app.submit(who="bob").json()["id"]
    existing = app.http.get(f"/v1/jobs/{job_id}", headers=app.headers["ada"]).json()["detail"]
    missing = app.http.get(f"/v1/jobs/{job_id[:-1]}0", headers=app.headers["ada"]).json()["detail"]
    assert existing.replace(job_id, "") == missing.replace(f"{job_id[:-1]}0", "")


def test_only_admins_list_jobs_of_others(app: Api) -> None:
    app.submit(who="bob")
    answers = {who: app.http.get("/v1/jobs?owner=bob", headers=app.headers[who]) for who in ("ada", "bob", "root")}
    assert {who: answer.status_code for who, answer in answers.items()} == {"ada": 403, "bob": 200, "root": 200}
    assert len(answers["root"].json()["jobs"]) == 1


def test_a_missing_manifest_is_refused_at_submission(app: Api) -> None:
    job = {"kind": "check", "manifest": f"{app.lab}/missing.csv"}
    answer = app.http.post("/v1/jobs", json={"job": job}, headers=app.headers["ada"])
    assert (answer.status_code, "no manifest under this name" in answer.json()["detail"]) == (422, True)
    assert app.http.get("/v1/jobs", headers=app.headers["ada"]).json()["jobs"] == []
    folder = {"kind": "check", "manifest": f"{app.lab}/"}
    assert app.http.post("/v1/jobs", json={"job": folder}, headers=app.headers["ada"]).status_code == 201


def test_a_repeated_key_returns_its_job_after_the_manifest_was_deleted(app: Api) -> None:
    first = app.submit("b.csv", key="k")
    (Path(app.lab) / "b.csv").unlink()
    job = {"kind": "check", "manifest": f"{app.lab}/b.csv"}
    repeated = app.http.post("/v1/jobs", json={"job": job}, headers=app.headers["ada"] | {"Idempotency-Key": "k"})
    assert (repeated.status_code, repeated.json()["id"]) == (200, first.json()["id"])


def test_a_job_is_accepted_while_its_store_does_not_respond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr("service.api.manifests.DEADLINE_S", 0.2)
    app = make_api(tmp_path, places=(Place(prefix="s3://bucket"),))
    job = {"kind": "check", "manifest": "s3://bucket/a.csv"}
    assert app.http.post("/v1/jobs", json={"job": job}, headers=app.headers["ada"]).status_code == 201
