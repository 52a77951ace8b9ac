"""Commands of tokens and logins, with HTTP servers in the test's process."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.api.tokens import Tokens
from service.cli.main import run
from service.client import device_login
from service.environment import read_client_settings, write_client_file
from service.errors import UsageError
from service.queue import audit
from service.queue.tables import Database
from service.settings.service import read_service_settings
from tests.service.cli.http_server import HttpServer, RecordedRequest, Reply, Route, serving

USAGE = {"used": 1, "limit": 20}
CALLER = {"owner": "ada", "scope": "submit", "groups": ["lab"], "token_id": "0123456789ab", "expires_s": 2e9}
CALLER |= dict.fromkeys(("queued", "running", "recurring", "followed"), USAGE)


def make_token(secret: str | None = None, **values: Any) -> dict[str, Any]:
    """Return a token as the API shows it."""
    known = {"id": "ba9876543210", "owner": "ada", "scope": "submit", "created_s": 1e9, "expires_s": 2e9}
    return known | {"revoked_s": None} | ({} if secret is None else {"secret": secret}) | values


@pytest.fixture
def service(home: Path) -> Iterator[HttpServer]:
    """A service to which this machine is logged in."""
    routes: dict[str, Route] = {"GET /v1/whoami": Reply(CALLER)}
    with serving(routes) as server:
        write_client_file(server.url, "magnet_old")
        yield server


def client_file(home: Path) -> Path:
    return home / ".config" / "magnet" / "client.json"


def test_only_its_user_can_ever_read_the_client_file(home: Path) -> None:
    write_client_file("https://lab", "magnet_x")
    file = client_file(home)
    assert json.loads(file.read_text()) == {"url": "https://lab", "token": "magnet_x"}
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)) == (0o600, 0o700)
    assert [path.name for path in file.parent.iterdir()] == ["client.json"]


def test_a_stored_token_goes_to_its_own_service_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_client_file("https://lab", "magnet_x")
    assert read_client_settings().token == "magnet_x"
    monkeypatch.setenv("MAGNET_URL", "https://other")
    assert read_client_settings().token is None
    monkeypatch.setenv("MAGNET_URL", "https://lab/")
    assert read_client_settings().token == "magnet_x"


@pytest.mark.parametrize("text", ["{", "[]", '{"url": 3}'])
def test_a_damaged_client_file_is_an_error_that_says_what_to_do(home: Path, text: str) -> None:
    write_client_file("https://lab", "magnet_x")
    client_file(home).write_text(text)
    with pytest.raises(UsageError, match="magnet login"):
        read_client_settings()


def test_whoami_shows_owner_end_and_limits(service: HttpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["whoami"]) == 0
    out = capsys.readouterr().out
    assert f"ada at {service.url}" in out
    assert "2033-05-18" in out
    assert "1 of 20" in out
    assert service.requests[0].headers["Authorization"] == "Bearer magnet_old"


def test_rotation_stores_the_new_secret(service: HttpServer, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service.routes["POST /v1/tokens/rotate"] = Reply(make_token("magnet_new"), 201)
    assert run(["rotate", "--grace-s", "5"]) == 0
    assert json.loads(client_file(home).read_text()) == {"url": service.url, "token": "magnet_new"}
    assert stat.S_IMODE(client_file(home).stat().st_mode) == 0o600
    assert service.requests[-1].json == {"grace_s": 5}
    assert "magnet_new" not in "".join(capsys.readouterr())


def test_rotation_of_a_token_of_the_environment_prints_the_new_secret(
    service: HttpServer, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGNET_TOKEN", "magnet_env")
    service.routes["POST /v1/tokens/rotate"] = Reply(make_token("magnet_new"), 201)
    assert run(["rotate"]) == 0
    assert capsys.readouterr().out == "magnet_new\n"
    assert json.loads(client_file(home).read_text())["token"] == "magnet_old"


def test_tokens_are_made_listed_and_revoked(service: HttpServer, capsys: pytest.CaptureFixture[str]) -> None:
    service.routes |= {
        "POST /v1/tokens": Reply(make_token("magnet_made"), 201),
        "GET /v1/tokens": Reply([make_token(note="laptop"), make_token(revoked_s=1.5e9)]),
        "DELETE /v1/tokens/ba9876543210": Reply(status=204),
    }
    for options, body in (
        ([], {"owner": "bob", "scope": "submit"}),
        (["--days", "1", "--scope", "admin"], {"owner": "bob", "scope": "admin", "days": 1}),
        (["--days", "never"], {"owner": "bob", "scope": "submit", "days": None}),
    ):
        assert run(["token", "bob", *options]) == 0
        assert capsys.readouterr().out == "magnet_made\n"
        assert service.requests[-1].json == body
    assert run(["tokens"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert ("valid" in rows[1], "laptop" in rows[1], "revoked" in rows[2]) == (True, True, True)
    assert run(["tokens", "--revoke", "ba9876543210"]) == 0
    assert len(service.calls("DELETE /v1/tokens/ba9876543210")) == 1


def test_the_first_token_expires_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "service.yaml"
    config.write_text(yaml.safe_dump({"storage": str(tmp_path / "storage"), "token_days": 7.0, "max_token_days": 30.0}))
    for options, days in ((["--days", "1"], 1), ([], 7)):
        assert run(["token", "ada", "--scope", "admin", "--config", str(config), *options]) == 0
        capsys.readouterr()
        database = Database(read_service_settings(str(config), []).database_url)
        newest = Tokens(database).list_tokens()[-1]
        database.close()
        assert (newest.owner, newest.scope) == ("ada", "admin")
        assert newest.expires_s == pytest.approx(newest.created_s + days * 86400, abs=1)
    for options in (["--days", "31"], ["--days", "never"], ["--days", "0"]):
        assert run(["token", "ada", "--scope", "admin", "--config", str(config), *options]) == 2
        assert "at most 30" in capsys.readouterr().err


def test_promotion_prints_the_new_and_the_earlier_version(
    service: HttpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted = {"name": "magnet", "alias": "champion", "version": "4", "earlier": "3"}
    service.routes["POST /v1/models/promote"] = Reply(promoted)
    assert run(["promote", "models:/magnet@challenger"]) == 0
    assert service.requests[-1].json == {"model": "models:/magnet@challenger", "alias": "champion"}
    assert capsys.readouterr().out == "models:/magnet@champion is version 4; earlier version 3\n"


def test_best_and_report_are_fetched(
    service: HttpServer, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = "tune-20260101-000000-0123abcd"
    service.routes |= {
        "GET /v1/jobs": Reply({"jobs": [], "next": None}),
        f"GET /v1/jobs/{job}/best": Reply(b"preset: paper\n"),
        f"GET /v1/jobs/{job}/report": Reply(b"<html>"),
    }
    assert run(["best", job, "-o", "best.yaml"]) == 0
    assert (tmp_path / "best.yaml").read_bytes() == b"preset: paper\n"
    assert run(["best", job]) == 0
    assert run(["report", job]) == 0
    assert capfdbinary.readouterr().out == f"preset: paper\n{job}-report.html\n".encode()
    assert (tmp_path / f"{job}-report.html").read_bytes() == b"<html>"


def test_last_is_the_newest_job_of_the_caller_not_of_all(service: HttpServer) -> None:
    service.routes["GET /v1/jobs"] = Reply({"jobs": [], "next": None})
    assert run(["show", "last"]) == 2
    assert service.requests[-1].query == {"owner": "ada", "limit": "1"}


class Provider:
    """An OpenID Connect provider with the device grant; `answers` are its responses to the polls."""

    def __init__(self, *answers: Reply) -> None:
        self.answers = list(answers)
        self.url = ""
        self.routes: dict[str, Route] = {
            "GET /.well-known/openid-configuration": lambda _: Reply(
                {
                    "issuer": self.url,
                    "device_authorization_endpoint": f"{self.url}/device",
                    "token_endpoint": f"{self.url}/token",
                }
            ),
            "POST /device": lambda _: Reply(
                {
                    "device_code": "D",
                    "user_code": "WDJB-MJHT",
                    "verification_uri": f"{self.url}/activate",
                    "expires_in": 600,
                    "interval": 2,
                }
            ),
            "POST /token": self.token,
        }

    def token(self, request: RecordedRequest) -> Reply:
        assert request.form == {"grant_type": device_login.GRANT, "device_code": "D", "client_id": "magnet"}
        return self.answers.pop(0)


PENDING, SLOWER = Reply({"error": "authorization_pending"}, 400), Reply({"error": "slow_down"}, 400)


def log_in(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> tuple[int, HttpServer, list[float]]:
    """Run `magnet login`, and return its status, the service, and the pauses."""
    pauses: list[float] = []
    monkeypatch.setattr("service.client.device_login.time.sleep", pauses.append)
    with serving(provider.routes) as issuer:
        provider.url = issuer.url
        routes: dict[str, Route] = {
            "GET /v1/login": Reply({"issuer": issuer.url, "client_id": "magnet"}),
            "POST /v1/login": Reply(make_token("magnet_login"), 201),
        }
        with serving(routes) as service:
            return run(["login", service.url]), service, pauses


def test_a_login_waits_for_the_browser_and_stores_the_token(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider(PENDING, SLOWER, PENDING, Reply({"id_token": "e.y.J", "access_token": "a"}))
    status, service, pauses = log_in(provider, monkeypatch)
    assert status == 0
    assert service.calls("POST /v1/login")[0].json == {"id_token": "e.y.J"}
    assert json.loads(client_file(home).read_text()) == {"url": service.url, "token": "magnet_login"}
    assert stat.S_IMODE(client_file(home).stat().st_mode) == 0o600
    assert pauses == [2, 2, 7, 7]  # slow_down adds five seconds to all later pauses
    shown = capsys.readouterr()
    assert f"{provider.url}/activate" in shown.err
    assert "WDJB-MJHT" in shown.err
    assert "magnet_login" not in shown.out + shown.err


def test_a_login_revokes_the_stored_token_that_it_replaces(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.device_login.time.sleep", lambda _: None)
    provider = Provider(Reply({"id_token": "e.y.J", "access_token": "a"}))
    with serving(provider.routes) as issuer:
        provider.url = issuer.url
        routes: dict[str, Route] = {
            "GET /v1/login": Reply({"issuer": issuer.url, "client_id": "magnet"}),
            "POST /v1/login": Reply(make_token("magnet_new"), 201),
            "GET /v1/whoami": Reply(CALLER),
            f"DELETE /v1/tokens/{CALLER['token_id']}": Reply(status=204),
        }
        with serving(routes) as service:
            write_client_file(service.url, "magnet_old")
            assert run(["login", service.url]) == 0
            [revoked] = service.calls(f"DELETE /v1/tokens/{CALLER['token_id']}")
    assert revoked.headers["Authorization"] == "Bearer magnet_old"
    assert json.loads(client_file(home).read_text())["token"] == "magnet_new"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Reply({"error": "access_denied"}, 400), "refused in the browser"),
        (Reply({"error": "expired_token"}, 400), "has expired"),
        (Reply({"error": "invalid_client", "error_description": "no such client"}, 401), "no such client"),
        (Reply({"access_token": "a"}), "no ID token"),
        (Reply(b"<html>", 502), "status 502"),
    ],
)
def test_a_login_that_fails_says_why_and_stores_nothing(
    home: Path, answer: Reply, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, service, _ = log_in(Provider(PENDING, answer), monkeypatch)
    assert status == 1
    assert message in capsys.readouterr().err
    assert not client_file(home).exists()
    assert not service.calls("POST /v1/login")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("issuer", "https://other.example", "not the discovery document"),
        ("token_endpoint", "http://evil.example/token", "not encrypted"),
        ("device_authorization_endpoint", None, "offers no login by device code"),
    ],
)
def test_a_login_at_another_provider_than_the_services_is_refused(
    home: Path,
    name: str,
    value: str | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = Provider()
    get_metadata = provider.routes["GET /.well-known/openid-configuration"]
    assert callable(get_metadata)

    def change_metadata(request: RecordedRequest) -> Reply:
        body = get_metadata(request).body | {name: value}
        return Reply({key: part for key, part in body.items() if part is not None})

    provider.routes["GET /.well-known/openid-configuration"] = change_metadata
    assert log_in(provider, monkeypatch)[0] != 0
    assert message in capsys.readouterr().err
    assert not client_file(home).exists()


def test_logout_revokes_the_stored_token_and_removes_it(service: HttpServer, home: Path) -> None:
    service.routes["DELETE /v1/tokens/0123456789ab"] = Reply(status=204)
    assert run(["logout"]) == 0
    assert len(service.calls("DELETE /v1/tokens/0123456789ab")) == 1
    assert json.loads(client_file(home).read_text()) == {"url": service.url}
    assert run(["logout"]) == 2


def make_audit_rows() -> list[dict[str, Any]]:
    rows, before = [], audit.FIRST
    for seq in range(1, 4):
        row = {"at_s": time.time(), "actor": "ada", "token_id": None, "address": "::1", "action": "job.submit"}
        row |= {"object": f"check-{seq}", "outcome": "ok", "detail": None}
        before = audit.digest(row, before)
        rows.append({"seq": seq} | row | {"digest": before})
    return rows


def test_the_audit_log_is_exported_page_by_page_and_an_export_is_verified(
    service: HttpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_audit_rows()

    def page(request: RecordedRequest) -> Reply:
        later = [row for row in rows if row["seq"] > int(request.query["after"])][:2]
        return Reply("".join(json.dumps(row) + "\n" for row in later).encode())

    service.routes["GET /v1/audit"] = page
    assert run(["audit", "--jsonl"]) == 0
    export = tmp_path / "audit.jsonl"
    export.write_text(capsys.readouterr().out)
    assert [json.loads(line) for line in export.read_text().splitlines()] == rows
    assert run(["audit", "--verify", str(export)]) == 0
    assert rows[-1]["digest"] in capsys.readouterr().out
    export.write_text(export.read_text().replace("check-2", "check-9"))
    assert run(["audit", "--verify", str(export)]) == 2
    assert "audit row 2" in capsys.readouterr().err
    assert run(["audit", "--after", "2"]) == 0
    assert "check-3" in (out := capsys.readouterr().out)
    assert "check-2" not in out
