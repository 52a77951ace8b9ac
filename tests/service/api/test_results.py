"""Results belong to the job that wrote them and to its user, whatever lies in the folder that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.queue import audit
from service.queue.store import Limits
from service.settings.service import Place
from tests.service.api.api_app import Api, api

pytestmark = pytest.mark.slow

EVERYTHING = Limits({"check": 9, "train": 9, "tune": 9, "score": 9}, 9)


@pytest.fixture
def own(tmp_path: Path) -> Api:
    return api(tmp_path)


def score(own: Api, who: str, out: str | None = None) -> Any:
    job = {"kind": "score", "manifest": f"{own.lab}/a.csv", "model": "models:/magnet@champion", "out": out}
    return own.http.post("/v1/jobs", json={"job": job}, headers=own.headers[who])


def finish(own: Api, job_id: str, state: str = "done") -> None:
    own.store.admit(EVERYTHING)
    own.store.end(job_id, own.store.job(job_id).attempt, state=state, reason=None, exit_code=0)


def write_results(folder: Path, text: str = "of ada") -> None:
    for name in ("scores.csv", "report.html", "pictures/s.jpg", "overlays/s.jpg", "geojson/s.geojson"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


PATHS = ("scores?format=csv", "report", "slides/s/picture", "slides/s/overlay", "slides/s/geojson")


def read(own: Api, who: str, job_id: str) -> list[int]:
    return [own.http.get(f"/v1/jobs/{job_id}/{path}", headers=own.headers[who]).status_code for path in PATHS]


def test_results_are_read_by_their_owner_once_the_job_is_done(own: Api) -> None:
    out = f"{own.lab}/out"
    job_id = score(own, "ada", out).json()["id"]
    write_results(Path(out), "of somebody")
    assert read(own, "ada", job_id) == [404] * 5
    finish(own, job_id, "failed")
    assert read(own, "ada", job_id) == [404] * 5
    own.store.retry(job_id)
    finish(own, job_id)
    assert read(own, "ada", job_id) == [200] * 5
    assert read(own, "bob", job_id) == [404] * 5
    assert read(own, "root", job_id) == [200] * 5


@pytest.mark.parametrize(
    "spelled", ["{lab}/out", "{lab}/out/", "{lab}//out", "{lab}/x/../out", "{lab}/link", "file://{lab}/out"]
)
def test_nobody_names_a_folder_that_another_users_job_writes_to(own: Api, spelled: str) -> None:
    out = Path(own.lab) / "out"
    write_results(out)
    (Path(own.lab) / "link").symlink_to(out)
    job_id = score(own, "ada", str(out)).json()["id"]
    finish(own, job_id)
    answer = score(own, "bob", spelled.format(lab=own.lab))
    assert answer.status_code == 409
    assert "another user's job writes to" in answer.json()["detail"]
    assert score(own, "ada", str(out)).status_code == 201  # one's own scoring is gone on with
    assert score(own, "bob", f"{own.lab}/other").status_code == 201
    assert len(own.http.get("/v1/jobs", headers=own.headers["bob"]).json()["jobs"]) == 1


@pytest.mark.parametrize("state", ["queued", "done"])
def test_a_link_to_another_users_folder_is_not_followed(own: Api, state: str) -> None:
    secret = score(own, "ada").json()["id"]
    folder = Path(own.settings.job_folder("ada", secret)) / "scores"
    write_results(folder)
    out = Path(own.lab) / "bobs"
    job_id = score(own, "bob", str(out)).json()["id"]
    out.symlink_to(folder)
    if state == "done":
        finish(own, job_id)
    statuses = read(own, "bob", job_id)
    assert statuses == ([403] * 5 if state == "done" else [404] * 5)


def test_a_link_to_a_file_outside_is_not_followed(own: Api, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    out = Path(own.lab) / "bobs"
    job_id = score(own, "bob", str(out)).json()["id"]
    finish(own, job_id)
    write_results(out)
    (out / "report.html").unlink()
    (out / "report.html").symlink_to(tmp_path / "token")
    assert read(own, "bob", job_id) == [200, 403, 200, 200, 200]


def test_a_place_that_was_closed_is_not_read_any_more(tmp_path: Path) -> None:
    own = api(tmp_path)
    job_id = score(own, "ada", f"{own.lab}/out").json()["id"]
    finish(own, job_id)
    write_results(Path(own.lab) / "out")
    assert read(own, "ada", job_id)[0] == 200
    own.http.app.state.settings = api(tmp_path, places=(Place(prefix=own.lab, read=("bob",)),)).settings
    assert read(own, "ada", job_id) == [403] * 5


def test_reads_of_results_are_recorded_and_lists_are_not(own: Api) -> None:
    job_id = score(own, "ada").json()["id"]
    write_results(Path(own.settings.job_folder("ada", job_id)) / "scores")
    assert read(own, "root", job_id) == [200] * 5
    own.http.get("/v1/jobs", headers=own.headers["ada"])
    own.http.get(f"/v1/jobs/{job_id}/logs", headers=own.headers["ada"])
    rows = [
        (row.actor, row.object, row.detail) for row in audit.rows(own.store.database) if row.action == "result.read"
    ]
    names = ("scores.csv", "report.html", "s.jpg", "s.jpg", "s.geojson")
    assert rows == [("root", job_id, name) for name in names]


def test_the_report_cannot_run_anything(own: Api) -> None:
    job_id = score(own, "ada").json()["id"]
    write_results(Path(own.settings.job_folder("ada", job_id)) / "scores", "<script>alert(1)</script>")
    answer = own.http.get(f"/v1/jobs/{job_id}/report", headers=own.headers["ada"])
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_the_best_settings_of_a_search_are_read(own: Api) -> None:
    job = {"kind": "tune", "manifest": f"{own.lab}/a.csv"}
    job_id = own.http.post("/v1/jobs", json={"job": job}, headers=own.headers["ada"]).json()["id"]
    url = f"/v1/jobs/{job_id}/best"
    answer = own.http.get(url, headers=own.headers["ada"])
    assert (answer.status_code, "has no best.yaml; it is queued" in answer.json()["detail"]) == (404, True)
    best = Path(own.settings.runs("ada")) / job_id / "best.yaml"
    best.parent.mkdir(parents=True)
    best.write_text("recipe: {epochs: 3}\n")
    answer = own.http.get(url, headers=own.headers["ada"])
    assert (answer.headers["content-type"], answer.text) == ("application/yaml", "recipe: {epochs: 3}\n")
    assert own.http.get(url, headers=own.headers["bob"]).status_code == 404
    other = own.submit().json()["id"]
    assert "only searches" in own.http.get(f"/v1/jobs/{other}/best", headers=own.headers["ada"]).json()["detail"]


def test_an_ended_job_is_deleted_and_no_other(own: Api) -> None:
    job_id, ada = own.submit().json()["id"], own.headers["ada"]
    url = f"/v1/jobs/{job_id}"
    assert own.http.delete(url, headers=ada).status_code == 409
    own.http.post(f"{url}/cancel", headers=ada)
    assert own.http.delete(url, headers=own.headers["bob"]).status_code == 404
    assert own.http.delete(url, headers=own.headers["eve"]).status_code == 403
    answer = own.http.delete(url, headers=ada)
    assert (answer.status_code, answer.json()["delete_requested"]) == (202, True)
    assert own.store.job(job_id).delete_requested == 1
    assert own.http.delete(url, headers=ada).status_code == 202
    assert own.http.post(f"{url}/retry", headers=ada).status_code == 409


@pytest.mark.parametrize(
    "job_id", ["x", "train-20260101-000000-0000000", "check-20260101-000000-00000000", "a%00b", "ü", "x" * 3000]
)
def test_a_wrong_job_id_gets_a_plain_sentence(own: Api, job_id: str) -> None:
    for path in ("", "/logs", "/events", "/scores", "/best"):
        answer = own.http.get(f"/v1/jobs/{job_id}{path}", headers=own.headers["ada"])
        assert answer.status_code == 404
        assert answer.json()["detail"].startswith("no job '")
        assert answer.json()["detail"].endswith("`magnet jobs` lists them")


def test_a_job_of_another_user_looks_like_none(own: Api) -> None:
    job_id = own.submit(who="bob").json()["id"]
    there = own.http.get(f"/v1/jobs/{job_id}", headers=own.headers["ada"]).json()["detail"]
    missing = own.http.get(f"/v1/jobs/{job_id[:-1]}0", headers=own.headers["ada"]).json()["detail"]
    assert there.replace(job_id, "") == missing.replace(f"{job_id[:-1]}0", "")


def test_only_admins_list_jobs_of_others(own: Api) -> None:
    own.submit(who="bob")
    asked = {who: own.http.get("/v1/jobs?owner=bob", headers=own.headers[who]) for who in ("ada", "bob", "root")}
    assert {who: answer.status_code for who, answer in asked.items()} == {"ada": 403, "bob": 200, "root": 200}
    assert len(asked["root"].json()["jobs"]) == 1


def test_a_missing_manifest_costs_no_job(own: Api) -> None:
    job = {"kind": "check", "manifest": f"{own.lab}/missing.csv"}
    answer = own.http.post("/v1/jobs", json={"job": job}, headers=own.headers["ada"])
    assert (answer.status_code, "no manifest under this name" in answer.json()["detail"]) == (422, True)
    assert own.http.get("/v1/jobs", headers=own.headers["ada"]).json()["jobs"] == []
    folder = {"kind": "check", "manifest": f"{own.lab}/"}
    assert own.http.post("/v1/jobs", json={"job": folder}, headers=own.headers["ada"]).status_code == 201


def test_a_key_gives_its_job_though_the_manifest_is_gone(own: Api) -> None:
    first = own.submit("b.csv", key="k")
    (Path(own.lab) / "b.csv").unlink()
    job = {"kind": "check", "manifest": f"{own.lab}/b.csv"}
    again = own.http.post("/v1/jobs", json={"job": job}, headers=own.headers["ada"] | {"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


def test_a_store_that_does_not_answer_refuses_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr("service.api.manifests.DEADLINE_S", 0.2)
    own = api(tmp_path, places=(Place(prefix="s3://bucket"),))
    job = {"kind": "check", "manifest": "s3://bucket/a.csv"}
    assert own.http.post("/v1/jobs", json={"job": job}, headers=own.headers["ada"]).status_code == 201
