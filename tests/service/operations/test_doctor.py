"""The checks of `magnet doctor`, with parts that work and parts that do not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cli.main import run
from service.environment import write_client_file
from service.operations.check import Check
from service.operations.doctor import run_checks
from service.operations.file_modes import find_exposed
from service.operations.part_checks import make_api_url
from service.queue.tables import Database
from service.settings.service import ServiceSettings
from tests.service.cli.http_server import Reply, serving

pytestmark = pytest.mark.slow

UNREACHABLE = "http://127.0.0.1:1"
ALIVE = Reply({"status": "alive"})
NO_JOBS = Reply({"jobs": [], "next": None})


def make_settings(folder: Path, **values: Any) -> ServiceSettings:
    return ServiceSettings(
        **{"storage": str(folder / "storage"), "ray": UNREACHABLE, "mlflow": UNREACHABLE, "port": 1} | values
    )


def run_named_checks(settings: ServiceSettings) -> dict[str, Check]:
    """Run all checks, and return their outcomes by name."""
    Path(settings.storage).mkdir(exist_ok=True)
    return {check.name: check for check in run_checks(settings)}


def test_unreachable_parts_fail_with_a_fix_and_hide_no_other_check(tmp_path: Path) -> None:
    outcomes = run_named_checks(make_settings(tmp_path))
    unreachable = {"dispatcher", "ray", "gpu", "mlflow", "api"}
    assert {name for name, check in outcomes.items() if not check.ok} - {"disk"} == unreachable
    assert all(check.fix for check in outcomes.values() if not check.ok)


def test_the_command_ends_with_the_names_of_failed_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "service.yaml"
    config.write_text(yaml.safe_dump({"storage": str(tmp_path), "ray": UNREACHABLE, "mlflow": UNREACHABLE, "port": 1}))
    assert run(["doctor", "--config", str(config)]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("failed checks: ")
    assert "ray" in last


def test_a_file_in_a_closed_folder_is_not_exposed(tmp_path: Path) -> None:
    folder, secret = tmp_path / "secrets", tmp_path / "secrets" / "token"
    folder.mkdir(mode=0o700)
    secret.write_text("x")
    secret.chmod(0o644)
    assert find_exposed([secret]) == []
    folder.chmod(0o755)
    assert find_exposed([secret]) == [secret]


def test_a_corrupt_database_is_to_be_restored_not_restarted(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    Database(settings.database_url).close()
    file = tmp_path / "storage" / "private" / "queue.db"
    data = bytearray(file.read_bytes())
    for damaged in (b"no database at all" * 100, bytes(data[:4096] + os.urandom(len(data) - 4096))):
        file.write_bytes(damaged)
        for other in ("queue.db-wal", "queue.db-shm"):
            (file.parent / other).unlink(missing_ok=True)
        outcomes = run_named_checks(settings)
        assert "corrupt" in outcomes["database"].detail
        assert "restore a backup" in outcomes["database"].fix
        assert "start it" not in outcomes["database"].fix
        assert not outcomes["dispatcher"].ok


def test_the_api_of_the_settings_is_called_not_the_one_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"GET /healthz": ALIVE, "GET /v1/jobs": NO_JOBS}) as other:
        write_client_file(other.url, "magnet_other")
        monkeypatch.setenv("MAGNET_URL", other.url)
        assert not run_named_checks(make_settings(tmp_path))["api"].ok
        with serving({"GET /healthz": ALIVE, "GET /v1/jobs": NO_JOBS}) as server:
            outcomes = run_named_checks(make_settings(tmp_path, port=int(server.url.rpartition(":")[2])))["api"]
            assert outcomes.ok
            assert "no token for it is stored" in outcomes.detail
            assert all("Authorization" not in request.headers for request in server.requests)
        assert other.requests == []


def test_the_stored_token_is_sent_only_to_its_service(tmp_path: Path) -> None:
    with serving({"GET /healthz": ALIVE, "GET /v1/jobs": NO_JOBS}) as server:
        settings = make_settings(tmp_path, port=int(server.url.rpartition(":")[2]))
        write_client_file(f"http://localhost:{settings.port}", "magnet_stored")
        assert run_named_checks(settings)["api"].ok
        assert server.calls("GET /v1/jobs")[0].headers["Authorization"] == "Bearer magnet_stored"
        server.routes["GET /v1/jobs"] = Reply({"detail": "the token has expired", "to_do": "magnet login"}, 401)
        outcomes = run_named_checks(settings)["api"]
        assert (outcomes.ok, outcomes.fix) == (False, "magnet login")
        server.routes["GET /healthz"] = Reply(b"<html>", 200)
        assert not run_named_checks(settings)["api"].ok


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:8290"), ("::", "http://[::1]:8290"), ("10.0.0.7", "http://10.0.0.7:8290")],
)
def test_the_address_at_which_the_api_is_called(host: str, url: str) -> None:
    assert make_api_url(ServiceSettings(storage="/s", host=host)) == url


def test_mlflow_is_called_with_the_token_of_the_make_settings(tmp_path: Path) -> None:
    secret = tmp_path / "mlflow-token"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    path = "POST /api/2.0/mlflow/experiments/search"
    with serving({path: lambda request: Reply({}, 200 if request.headers.get("Authorization") else 401)}) as server:
        assert not run_named_checks(make_settings(tmp_path, mlflow=server.url))["mlflow"].ok
        assert run_named_checks(make_settings(tmp_path, mlflow=server.url, mlflow_token_file=str(secret)))["mlflow"].ok
        assert server.requests[-1].headers["Authorization"] == "Bearer s3cret"


def test_secrets_that_others_can_read_are_named(tmp_path: Path) -> None:
    secret = tmp_path / "folder" / "token"
    secret.parent.mkdir(mode=0o755)
    secret.write_text("s3cret")
    private = tmp_path / "storage" / "private"
    private.mkdir(parents=True, mode=0o700)
    (private / "queue.db").write_bytes(b"")
    (private / "queue.db").chmod(0o644)
    secret.chmod(0o600)
    assert find_exposed([private, secret, tmp_path / "none"]) == []  # a closed folder protects its files
    secret.chmod(0o640)
    private.chmod(0o750)
    assert find_exposed([private, secret]) == [private, private / "queue.db", secret]
    outcomes = run_named_checks(make_settings(tmp_path, ray_token_file=str(secret)))["secrets"]
    assert not outcomes.ok
    assert str(secret) in outcomes.detail
    assert "chmod -R go-rwx" in outcomes.fix
    assert not run_named_checks(make_settings(tmp_path, mlflow_token_file=str(tmp_path / "none")))["secrets"].ok


@pytest.mark.parametrize(
    ("values", "ok"),
    [
        ({"host": "127.0.0.1"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0", "hosts": ("lab",)}, False),
        ({"host": "0.0.0.0", "trusted_proxies": ("10.0.0.2",)}, False),
        ({"host": "0.0.0.0", "trusted_proxies": ("10.0.0.2",), "hosts": ("lab",)}, True),
        ({"host": "127.0.0.1", "tls_certificate": "/none.pem", "tls_key": "/none.pem"}, False),
    ],
)
def test_an_api_for_other_machines_needs_tls_and_names(tmp_path: Path, values: dict[str, Any], ok: bool) -> None:
    assert run_named_checks(make_settings(tmp_path, **values))["network"].ok == ok


def test_a_clock_that_differs_from_the_stores_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.operations.machine_checks._get_written_s", lambda _: 1e9)
    outcomes = run_named_checks(make_settings(tmp_path))["storage"]
    assert not outcomes.ok
    assert "clock" in outcomes.detail
