"""The compose file, its settings and its secrets."""

from __future__ import annotations

import copy
import json
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

from service.cli.parser import build_parser
from service.settings.service import read_service_settings
from tests.infra.schemas import Manifest, check_compose

INFRA = Path(__file__).parents[2] / "infra"
COMPOSE: Manifest = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())
OWN = ("mlflow", "ray-head", "ray-worker", "ray-gpu-worker", "api", "dispatcher")


def test_the_compose_file_keeps_to_the_specification() -> None:
    check_compose(COMPOSE)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c["services"]["api"].update(depend_on=[]),
        lambda c: c["services"]["api"]["healthcheck"].update(retry=3),
        lambda c: c["services"]["postgres"]["healthcheck"].update(retries=[1]),
        lambda c: c["secrets"]["ray_token"].update(path="./x"),
        lambda c: c.update(service={}),
    ],
    ids=["service key", "health check key", "wrong type", "secret key", "top key"],
)
def test_a_broken_compose_file_is_caught(damage: Callable[[Manifest], object]) -> None:
    broken = copy.deepcopy(COMPOSE)
    damage(broken)
    with pytest.raises(jsonschema.ValidationError):
        check_compose(broken)


def test_what_services_name_is_there() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"]), name
        assert set(service.get("depends_on", [])) <= set(services), name
        needs = service.get("depends_on", {})
        healthy = (
            [n for n, c in needs.items() if c["condition"] == "service_healthy"] if isinstance(needs, dict) else []
        )
        assert all("healthcheck" in services[other] for other in healthy), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (INFRA / "compose" / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
            assert known, volume
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port} to the network"


def test_secrets_come_as_files_that_the_service_is_given() -> None:
    for name, service in COMPOSE["services"].items():
        environment = service.get("environment", {})
        files = {value for value in environment.values() if str(value).startswith("/run/secrets/")}
        given = {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
        if name in OWN and "RAY_AUTH_TOKEN_PATH" in environment and "ray_token" not in service["secrets"]:
            files.discard(environment["RAY_AUTH_TOKEN_PATH"])  # part of the shared environment; Ray is not called here
        if name != "bucket":
            assert files <= given, name
        assert not [key for key in environment if key.endswith(("PASSWORD", "SECRET_ACCESS_KEY", "TOKEN"))], name


def test_every_part_that_stays_has_a_health_check_and_the_head_takes_no_tasks() -> None:
    for name in ("postgres", "s3", *OWN):
        assert "healthcheck" in COMPOSE["services"][name], name
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(COMPOSE["services"]["ray-head"]["command"])
    assert any(word.startswith("--allowed-hosts=mlflow:5000") for word in COMPOSE["services"]["mlflow"]["command"])


def test_the_service_takes_its_settings_and_commands() -> None:
    settings = read_service_settings(str(INFRA / "compose" / "service.yaml"), [])
    assert settings.ray == "http://ray-head:8265"
    assert settings.port == 8290
    for part in ("api", "dispatcher"):
        build_parser().parse_args(COMPOSE["services"][part]["command"][1:])


def test_secrets_are_made_once_and_agree(tmp_path: Path) -> None:
    script = shutil.copy(INFRA / "compose" / "make-secrets", tmp_path)
    subprocess.run(["sh", script], check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    subprocess.run(["sh", script], check=True)
    assert made == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(made) == set(COMPOSE["secrets"])
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    credentials = json.loads(made["s3_identities"])["identities"][0]["credentials"][0]
    assert f"aws_access_key_id = {credentials['accessKey']}" in made["aws_credentials"]
    assert f"aws_secret_access_key = {credentials['secretKey']}" in made["aws_credentials"]
    assert len(made["postgres_password"]) == 48


def test_the_entrypoint_hands_libpq_its_password_and_becomes_the_command(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("p w$'\n")
    words = ["sh", str(INFRA / "docker" / "entrypoint"), "sh", "-c", 'printf "%s" "$PGPASSWORD"; exit 7']
    ended = subprocess.run(words, env={"PGPASSWORD_FILE": str(secret), "PATH": "/usr/bin:/bin"}, capture_output=True)
    assert (ended.stdout, ended.returncode) == (b"p w$'", 7)
