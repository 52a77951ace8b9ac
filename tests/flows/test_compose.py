"""The compose file's services as plain processes: its commands, environment, health checks, secrets and settings.

Only names and ports differ, since all services share one machine, and moto provides S3: SeaweedFS is in no package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
import yaml

from ray_jobs.cluster.processes import free_port
from service.client import Client
from service.queue.requests import Check, Train
from service.settings.train import read_train_settings
from tests.flows.harness import FLOW, ROOT, SHELL, Command, answers, running
from tests.postgres import Postgres, postgres

pytestmark = [pytest.mark.timeout(1200), *FLOW, pytest.mark.long]  # the first timeout counts

COMPOSE = ROOT / "infra" / "compose"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
ENTRYPOINT = ["sh", str(ROOT / "infra" / "docker" / "entrypoint")]
IN_ORDER = ("mlflow", "ray-head", "ray-worker", "api", "dispatcher")
PATIENCE_S = 300.0


class Machine:
    """A machine on which all services run.

    Args:
        folder: folder for secrets, settings and logs.
        database: database that replaces the service `postgres`.
        stack: stack that ends the processes.
    """

    def __init__(self, folder: Path, database: Postgres, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.ports = {name: free_port() for name in ("s3", "mlflow", "gcs", "dashboard", "agent", "api", "metrics")}
        self._replacements = {
            "http://s3:8333": f"http://127.0.0.1:{self.ports['s3']}",
            "mlflow:5000": f"127.0.0.1:{self.ports['mlflow']}",
            "ray-head:6379": f"127.0.0.1:{self.ports['gcs']}",
            "ray-head:8265": f"127.0.0.1:{self.ports['dashboard']}",
            "127.0.0.1:8265": f"127.0.0.1:{self.ports['dashboard']}",
            "127.0.0.1:52365": f"127.0.0.1:{self.ports['agent']}",
            "127.0.0.1:8290": f"127.0.0.1:{self.ports['api']}",
            "api:8290": f"127.0.0.1:{self.ports['api']}",
            "@postgres/": f"@127.0.0.1:{database.port}/",
            "0.0.0.0": "127.0.0.1",
            "--port=5000": f"--port={self.ports['mlflow']}",
            "--port=6379": f"--port={self.ports['gcs']}",
            "--dashboard-port=8265": f"--dashboard-port={self.ports['dashboard']}",
            "--dashboard-agent-listen-port=52365": f"--dashboard-agent-listen-port={self.ports['agent']}",
            "--metrics-export-port=8080": "--metrics-export-port=0",  # two nodes on one machine
            "--object-store-memory=2147483648": "--object-store-memory=300000000",
            "/run/secrets/": f"{folder}/secrets/",
            "/etc/magnet/service.yaml": f"{folder}/service.yaml",
        }

    def localise(self, text: str) -> str:
        """Replace names and ports by those of this machine."""
        for there, here in self._replacements.items():
            text = text.replace(there, here)
        return text

    def environment(self, service: str) -> dict[str, str]:
        """Return a service's environment in the compose file, and the path of the repository."""
        variables: Mapping[str, object] = SERVICES[service].get("environment", {})
        env = {name: self.localise(str(value)) for name, value in variables.items() if not str(value).startswith("${")}
        return env | {
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),
            "MAGNET_CACHE_DIR": str(self.folder / "cache"),
        }

    def start(self, service: str) -> Command:
        """Run a service's command through the image's entry point, until the test ends."""
        argv = self._make_argv(SERVICES[service]["command"])
        log = self.folder / f"{service}.log"
        return self._stack.enter_context(running([*ENTRYPOINT, *argv], self.environment(service), log))

    def run(self, service: str, argv: Sequence[str], before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command in a service's environment to its end; `before` is a prefix such as ``env A=B``."""
        env = os.environ | SHELL | self.environment(service)
        full_argv = [*before, *ENTRYPOINT, *self._make_argv(argv)]
        return subprocess.run(full_argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    def is_healthy(self, service: str) -> bool:
        """Return whether the service's health check passes."""
        how, *argv = SERVICES[service]["healthcheck"]["test"]
        assert how == "CMD"
        return self.run(service, argv).returncode == 0

    def _make_argv(self, argv: Sequence[str]) -> list[str]:
        magnet = ["python", "-c", "from service.cli.main import main; main()"]  # which the image has installed
        program, *rest = argv
        return [*(magnet if program == "magnet" else [program]), *map(self.localise, rest)]


@pytest.fixture
def machine(cohort: Path, tmp_path: Path) -> Iterator[Machine]:
    """All services of the compose file, each of them healthy, and a bucket with slides."""
    subprocess.run(["sh", shutil.copy(COMPOSE / "make-secrets", tmp_path)], check=True)
    with postgres() as database, ExitStack() as stack:
        with psycopg.connect(database.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("CREATE DATABASE magnet")
            connection.execute((COMPOSE / "mlflow-database.sql").read_bytes())
        machine = Machine(tmp_path, database, stack)
        settings = machine.localise((COMPOSE / "service.yaml").read_text())
        (tmp_path / "service.yaml").write_text(f"{settings}port: {machine.ports['api']}\n")
        _start_s3(machine, stack, cohort)
        for service in IN_ORDER:
            process = machine.start(service)
            process.wait_for(partial(machine.is_healthy, service), PATIENCE_S)
        yield machine


def _start_s3(machine: Machine, stack: ExitStack, cohort: Path) -> None:
    argv = ["python", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(machine.ports["s3"])]
    server = stack.enter_context(running(argv, {}, machine.folder / "s3.log"))
    url = f"http://127.0.0.1:{machine.ports['s3']}"
    server.wait_for(lambda: answers(f"{url}/moto-api/"), PATIENCE_S)
    for _ in range(2):  # each `up` runs it again
        ended = machine.run("bucket", SERVICES["bucket"]["command"])
        assert ended.returncode == 0, ended.stderr
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, **keys)
    for path in [cohort / "manifest.csv", *(cohort / "slides").iterdir()]:
        client.upload_file(str(path), "magnet", f"slides/{path.relative_to(cohort).as_posix()}")


def test_jobs_run_on_the_services_of_the_compose_file(machine: Machine, config: Path) -> None:
    """As for a user after `docker compose up`: a token, slides in the bucket, a check and a training."""
    created = machine.run("api", ["magnet", "token", "you", "--scope", "admin", "--config", "/etc/magnet/service.yaml"])
    assert created.returncode == 0, created.stderr
    manifest = "s3://magnet/slides/manifest.csv"
    with Client(f"http://127.0.0.1:{machine.ports['api']}", created.stdout.strip()) as client:
        checked = client.submit(Check(manifest=manifest, need_labels=True))
        settings = read_train_settings(str(config), ["recipe.epochs=1"])
        trained = client.submit(Train(manifest=manifest, settings=settings))
        for job in (checked, trained):
            ended = client.wait(job.id, timeout_s=PATIENCE_S)
            assert (ended.state, ended.attempt) == ("done", 1), "".join(client.logs(job.id))
        assert "all 16 slides open" in "".join(client.logs(checked.id))
        assert "registered as models:/magnet@challenger" in "".join(client.logs(trained.id))
    to_api = ["env", f"MAGNET_URL={client.url}", f"MAGNET_TOKEN={created.stdout.strip()}"]
    doctor = machine.run("dispatcher", ["magnet", "doctor", "--config", "/etc/magnet/service.yaml"], to_api)
    assert doctor.stdout.endswith("all checks passed\n"), doctor.stdout
    assert doctor.returncode == 0
