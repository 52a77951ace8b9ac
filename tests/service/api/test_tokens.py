"""Tokens, quotas and the audit log over HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.errors import UsageError
from service.operations.serving import create_admin_token
from service.queue import audit
from service.queue.tables import tokens
from service.settings.service import Quota
from tests.service.api.api_app import Api, make_api

pytestmark = pytest.mark.slow

DAY_S = 86400


@pytest.fixture
def app(tmp_path: Path) -> Api:
    return make_api(tmp_path)


def create_token(app: Api, **body: Any) -> Any:
    return app.http.post("/v1/tokens", json={"owner": "x", "scope": "read"} | body, headers=app.headers["root"])


def make_header(token: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token['secret']}"}


def lifetime_days(token: Any) -> float | None:
    return None if token["expires_s"] is None else (token["expires_s"] - token["created_s"]) / DAY_S


def test_tokens_expire_unless_their_creator_sets_no_end(app: Api) -> None:
    assert lifetime_days(create_token(app).json()) == pytest.approx(90)
    assert lifetime_days(create_token(app, days=1).json()) == pytest.approx(1)
    assert lifetime_days(create_token(app, days=None).json()) is None
    assert create_token(app, note="for the robot").json()["note"] == "for the robot"


def test_no_token_lives_longer_than_the_service_allows(tmp_path: Path) -> None:
    app = make_api(tmp_path, max_token_days=30.0)
    assert lifetime_days(create_token(app).json()) == pytest.approx(30)
    assert [create_token(app, days=days).status_code for days in (30, 31, None)] == [201, 422, 422]
    rotated = app.http.post(
        "/v1/tokens/rotate", json={}, headers=app.headers["ada"]
    ).json()  # the token of ada has no end
    assert lifetime_days(rotated) == pytest.approx(30)


def test_an_expired_token_is_refused(app: Api) -> None:
    token = create_token(app).json()
    with app.store.database.writing() as connection:
        connection.execute(tokens.update().where(tokens.c.id == token["id"]).values(expires_s=time.time() - 1))
    assert app.http.get("/v1/whoami", headers=make_header(token)).status_code == 401


def test_users_see_and_revoke_their_own_tokens_and_admins_all(app: Api) -> None:
    token = create_token(app, owner="ada", scope="read").json()
    tokens_of = {who: app.http.get("/v1/tokens", headers=app.headers[who]).json() for who in ("ada", "bob", "root")}
    assert {who: {token["owner"] for token in listed} for who, listed in tokens_of.items()} == {
        "ada": {"ada"},
        "bob": {"bob"},
        "root": {"ada", "bob", "eve", "pia", "root"},
    }
    assert "secret" not in tokens_of["ada"][0]
    url = f"/v1/tokens/{token['id']}"
    assert app.http.delete(url, headers=app.headers["bob"]).status_code == 404
    assert app.http.delete(url, headers=app.headers["ada"]).status_code == 204
    assert app.http.get("/v1/whoami", headers=make_header(token)).status_code == 401


def test_a_rotated_token_has_the_same_rights_and_the_old_one_ends(app: Api) -> None:
    token = create_token(app, owner="ada", scope="submit", days=10, note="n").json()
    rotated = app.http.post("/v1/tokens/rotate", json={"grace_s": 600}, headers=make_header(token)).json()
    assert (rotated["owner"], rotated["scope"], rotated["note"]) == ("ada", "submit", "n")
    assert lifetime_days(rotated) == pytest.approx(10)
    assert app.http.get("/v1/whoami", headers=make_header(rotated)).status_code == 200
    old = app.http.get("/v1/whoami", headers=make_header(token)).json()
    assert old["expires_s"] == pytest.approx(time.time() + 600, abs=60)
    last = app.http.post("/v1/tokens/rotate", json={"grace_s": 0}, headers=make_header(rotated)).json()
    assert app.http.get("/v1/whoami", headers=make_header(rotated)).status_code == 401
    assert app.http.get("/v1/whoami", headers=make_header(last)).status_code == 200
    assert app.http.post("/v1/tokens/rotate", json={"grace_s": 86401}, headers=make_header(last)).status_code == 422


def test_the_last_use_is_written_once_a_minute(app: Api) -> None:
    def get_last_used_s() -> Any:
        (token,) = app.http.get("/v1/tokens", headers=app.headers["eve"]).json()
        return token["last_used_s"]

    first = get_last_used_s()
    assert first == pytest.approx(time.time(), abs=60)
    assert get_last_used_s() == first
    with app.store.database.writing() as connection:
        connection.execute(tokens.update().values(last_used_s=first - 61))
    assert get_last_used_s() >= first


@pytest.mark.parametrize("owner", ["", "../x", "a b", "-x", "x" * 65, "ada\n", "*", "@lab"])
def test_a_malformed_owner_is_refused(app: Api, owner: str) -> None:
    assert create_token(app, owner=owner).status_code == 422
    with pytest.raises(UsageError, match="owner"):
        create_admin_token(app.settings, owner)


def test_whoami_shows_quotas_and_their_usage(tmp_path: Path) -> None:
    quotas = {"@students": Quota(max_queued=2, max_recurring=1), "bob": Quota(max_queued=0)}
    app = make_api(tmp_path, groups={"students": ("ada", "eve"), "lab": ("ada",)}, quotas=quotas)
    assert [app.submit(f"{k}.csv").status_code for k in range(3)] == [201, 201, 429]
    assert app.submit(who="bob").status_code == 429
    assert app.submit(who="pia").status_code == 201
    schedule = {"what": "schedule", "cron": "0 2 * * *", "job": {"kind": "check", "manifest": f"{app.lab}/a.csv"}}
    statuses = [app.http.post("/v1/recurring", json=schedule, headers=app.headers["ada"]).status_code for _ in range(2)]
    assert statuses == [201, 429]
    assert len(app.http.get("/v1/recurring", headers=app.headers["ada"]).json()) == 1
    who = app.http.get("/v1/whoami", headers=app.headers["ada"]).json()
    assert (who["owner"], who["scope"], who["groups"]) == ("ada", "submit", ["lab", "students"])
    assert (who["queued"], who["recurring"]) == ({"used": 2, "limit": 2}, {"used": 1, "limit": 1})
    assert who["running"] == {"used": 0, "limit": app.settings.max_running_per_user}


def list_actions(app: Api) -> list[tuple[str, str, str | None]]:
    return [(row.actor, row.action, row.object) for row in audit.rows(app.store.database)]


def test_every_change_is_in_the_audit_log(app: Api) -> None:
    ada, root = app.headers["ada"], app.headers["root"]
    job_id = app.submit(key="k").json()["id"]
    app.submit(key="k")  # a repeated key changes nothing
    for path, body in (("priority", {"priority": 1}), ("cancel", None), ("retry", None), ("cancel", None)):
        app.http.post(f"/v1/jobs/{job_id}/{path}", json=body, headers=ada)
    app.http.delete(f"/v1/jobs/{job_id}", headers=ada)
    schedule = {"what": "schedule", "cron": "0 2 * * *", "job": {"kind": "check", "manifest": f"{app.lab}/a.csv"}}
    entry = app.http.post("/v1/recurring", json=schedule, headers=ada).json()["id"]
    app.http.delete(f"/v1/recurring/{entry}", headers=ada)
    token = create_token(app).json()
    app.http.delete(f"/v1/tokens/{token['id']}", headers=root)
    rotated = app.http.post("/v1/tokens/rotate", json={}, headers=ada).json()
    assert list_actions(app) == [
        *(("ada", f"job.{what}", job_id) for what in ("submit", "priority", "cancel", "retry", "cancel", "delete")),
        ("ada", "recurring.create", entry),
        ("ada", "recurring.delete", entry),
        ("root", "token.create", token["id"]),
        ("root", "token.revoke", token["id"]),
        ("ada", "token.rotate", rotated["id"]),
    ]
    first = audit.page(app.store.database, limit=1)[0]
    assert first.address == "testclient"
    assert first.token_id in {token["id"] for token in app.http.get("/v1/tokens", headers=ada).json()}
    assert audit.verify(audit.rows(app.store.database))[0] == 11


def test_a_refused_change_is_recorded_only_as_denied(tmp_path: Path) -> None:
    app = make_api(tmp_path, max_queued_per_user=1)
    statuses = [app.submit("a.csv").status_code, app.submit("b.csv").status_code]
    assert statuses == [201, 429]
    assert [action for _, action, _ in list_actions(app)] == ["job.submit", "request.denied"]


def test_a_change_that_cannot_be_recorded_does_not_happen(app: Api) -> None:
    with app.store.database.writing() as connection:
        connection.execute(sa.text("ALTER TABLE audit RENAME TO renamed"))
    assert app.submit().status_code == 503
    assert app.http.get("/v1/jobs", headers=app.headers["ada"]).json()["jobs"] == []


def test_a_request_for_another_users_job_is_recorded_and_answered_like_a_missing_one(app: Api) -> None:
    job_id = app.submit(who="ada").json()["id"]
    assert app.http.get(f"/v1/jobs/{job_id}", headers=app.headers["bob"]).status_code == 404
    assert app.http.get("/v1/jobs/check-20260101-000000-00000000", headers=app.headers["bob"]).status_code == 404
    denied = [row for row in audit.rows(app.store.database) if row.outcome == "denied"]
    assert [(row.actor, row.object, row.detail) for row in denied] == [("bob", f"GET /v1/jobs/{job_id}", "404")]


def test_a_user_has_a_bounded_number_of_valid_tokens(app: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.tokens.MAX_TOKENS", 3)
    responses = [create_token(app, owner="ada") for _ in range(3)]
    assert [answer.status_code for answer in responses] == [201, 201, 422]
    app.http.delete(f"/v1/tokens/{responses[0].json()['id']}", headers=app.headers["root"])
    assert create_token(app, owner="ada").status_code == 201


def test_denied_requests_are_recorded_at_a_bounded_rate(tmp_path: Path) -> None:
    app = make_api(tmp_path, wrong_tokens_per_minute=1000)
    assert (
        app.http.post("/v1/tokens", json={"owner": "x", "scope": "read"}, headers=app.headers["ada"]).status_code == 403
    )
    for _ in range(100):
        assert app.http.get("/v1/jobs").status_code == 401
    rows = list(audit.rows(app.store.database))
    assert (rows[0].actor, rows[0].object, rows[0].outcome, rows[0].detail) == (
        "ada",
        "POST /v1/tokens",
        "denied",
        "403",
    )
    assert {row.actor for row in rows[1:]} == {"-"}
    assert 15 <= len(rows) <= 40  # a burst has twenty


def test_admins_read_the_audit_log_in_pages_and_export_it(app: Api, tmp_path: Path) -> None:
    for k in range(5):
        app.submit(f"{k}.csv")
    root = app.headers["root"]
    first = app.http.get("/v1/audit?limit=3", headers=root).json()
    then = app.http.get(f"/v1/audit?limit=3&after={first['next']}", headers=root).json()
    assert [row["action"] for row in first["rows"] + then["rows"]] == ["job.submit"] * 5
    assert then["next"] is None
    export = tmp_path / "audit.jsonl"
    export.write_bytes(app.http.get("/v1/audit?format=jsonl", headers=root).content)
    assert audit.verify(audit.read_export(str(export)))[0] == 5
    export.write_text(export.read_text().replace('"ada"', '"bob"', 1))
    with pytest.raises(audit.ChainError, match="row 1"):
        audit.verify(audit.read_export(str(export)))
    assert app.http.get("/v1/audit", headers=app.headers["ada"]).status_code == 403
