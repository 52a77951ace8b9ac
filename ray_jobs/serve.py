"""The whole service on this machine by one command: API, dispatcher, a Ray cluster and an MLflow server.

    magnet serve --storage ~/magnet-service --allow s3://lab

API, MLflow and Ray's dashboard listen on the loopback interface only; Ray's other ports listen everywhere, as Ray will
have it, behind a token that the first start makes. The user's own token lies, with the address, in
~/.config/magnet/client.json, where `magnet submit` and the others find it. Ray may take a minute to come up; jobs can
be submitted before, and wait. A part that dies is started again. Ctrl-C stops all of it; jobs that ran go on from their
last checkpoint at the next start.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ray_jobs import command
from ray_jobs.processes import answers, free_port, kill_tree
from service.environment import CLIENT_FILE
from service.parent_death import with_parent
from service.queue.ray_api import RayAwayError, RayJobs
from service.service_settings import ServiceSettings, service_settings
from service.serving import admin_token
from service.settings import to_dict

HERE = Path(sys.executable).parent
"""Of this environment's commands."""
REST_S = 2.0
"""Seconds before a part that died is started again."""
OBJECT_STORE_BYTES = 512 << 20
"""Ray's shared memory."""


@dataclass(slots=True)
class Part:
    """A process that is kept alive."""

    name: str
    words: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, in a session of its own: Ctrl-C is for this command, which stops it in order."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                list(self.words),
                stdout=log,
                stderr=log,
                env=os.environ | dict(self.env),
                start_new_session=True,
                preexec_fn=with_parent(signal.SIGTERM),
            )

    def revive(self) -> None:
        """Start it again if it has died."""
        if self.process is not None and self.process.poll() is not None:
            print(f"{self.name} ended ({self.process.returncode}); starting it again. Its log: {self.log}", flush=True)
            kill_tree(self.process)  # what it left behind
            time.sleep(REST_S)
            self.start()


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="magnet serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--storage", default="~/magnet-service", help="folder of everything that it keeps (default: %(default)s)")
    add("--allow", action="append", default=[], metavar="PREFIX", help="where slides and outputs may lie, beside it")
    add("--port", type=int, default=8290, help="of the API (default: %(default)s)")
    add("--cpus", type=int, default=max(2, os.cpu_count() or 2), help="of the Ray cluster (default: all)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the service")
    options = parser.parse_args(arguments)
    folder = Path(options.storage).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = _settings(folder, options)
    parts = _parts(settings, folder, options.cpus)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    try:
        for part in parts:
            part.start()
        _tell(settings, folder)
        up = False
        while True:
            for part in parts:
                part.revive()
            if not up and (up := _up(settings)):
                print("all parts are up", flush=True)
            time.sleep(0.5)
    except KeyboardInterrupt:
        print("stopping", flush=True)
        return 0
    finally:
        for part in reversed(parts):
            if part.process is not None:
                kill_tree(part.process)


def _interrupt(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # once is enough: stopping in order takes seconds
    raise KeyboardInterrupt


def _settings(folder: Path, options: argparse.Namespace) -> ServiceSettings:
    """The settings, with free ports for what only the parts need to know of each other; kept in the folder."""
    allowed = [place if "://" in place else str(Path(place).expanduser().resolve()) for place in options.allow]
    own = {
        "storage": str(folder),
        "port": options.port,
        "ray": f"http://127.0.0.1:{free_port()}",
        "ray_token_file": str(folder / "private" / "ray-token"),
        "mlflow": f"http://127.0.0.1:{free_port()}",
        "python": sys.executable,
        "places": [{"prefix": place, "write": ["*"]} for place in allowed],
    }
    kept = folder / "service.yaml"
    kept.write_text(yaml.safe_dump(own))
    settings = service_settings(str(kept), options.set)
    kept.write_text(yaml.safe_dump(to_dict(settings), sort_keys=False))
    return settings


def _parts(settings: ServiceSettings, folder: Path, num_cpus: int) -> list[Part]:
    logs, config = folder / "logs", ["--config", str(folder / "service.yaml")]
    logs.mkdir(exist_ok=True)
    ray_port, mlflow_port = settings.ray.rpartition(":")[2], (settings.mlflow or "").rpartition(":")[2]
    magnet = [sys.executable, "-c", "from service.cli.main import main; main()"]
    mlflow = [
        *(str(HERE / "mlflow"), "server", "--host", "127.0.0.1", "--port", mlflow_port, "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")),
    ]
    ports = {"": free_port(), "ray-client-server-": free_port(), "dashboard-agent-listen-": free_port()}
    ray = [
        *(str(HERE / "ray"), "start", "--head", "--block", f"--num-cpus={num_cpus}", "--node-ip-address=127.0.0.1"),
        *(f"--{what}port={port}" for what, port in (ports | {"dashboard-": ray_port}).items()),
        *("--disable-usage-stats", f"--object-store-memory={OBJECT_STORE_BYTES}"),
    ]
    assert settings.ray_token_file is not None
    if not Path(settings.ray_token_file).exists():
        _write_secret(Path(settings.ray_token_file), secrets.token_hex(32))
    # Whatever --node-ip-address says, Ray's ports listen on all interfaces, and whoever reaches them runs code.
    ray_env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": settings.ray_token_file}
    ray_env |= {"RAY_API_SERVER_ADDRESS": settings.ray}
    return [
        Part("Ray", ray, logs / "ray.log", ray_env),
        Part("MLflow", mlflow, logs / "mlflow.log"),
        Part("the dispatcher", [*magnet, "dispatch", *config], logs / "dispatcher.log", ray_env),
        Part("the API", [*magnet, "api", *config], logs / "api.log", ray_env),
    ]


def _tell(settings: ServiceSettings, folder: Path) -> None:
    """Say where everything is; make the first token."""
    url, file = f"http://{settings.host}:{settings.port}", Path(CLIENT_FILE).expanduser()
    token_file = folder / "admin-token"
    if not token_file.exists():
        _write_secret(token_file, admin_token(settings, getpass.getuser()))
    if not file.exists() or json.loads(file.read_text()).get("url") == url:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_secret(file, json.dumps({"url": url, "token": token_file.read_text()}))
    else:
        print(f"{file} names another service; for this one: export MAGNET_URL={url} MAGNET_TOKEN=$(cat {token_file})")
    print(f"API          {url}/docs")
    print(f"MLflow       {settings.mlflow}")
    print(f"Ray          {settings.ray}")
    print(f"logs         {folder / 'logs'}")
    print(f"try          magnet doctor --config {folder / 'service.yaml'}", flush=True)


def _up(settings: ServiceSettings) -> bool:
    """Whether every part answers; jobs that are submitted before wait for it."""
    api = f"http://{settings.host}:{settings.port}/readyz"  # also says whether the dispatcher is at work
    if not (answers(api) and answers(f"{settings.mlflow}/health")):
        return False
    try:
        RayJobs(settings.ray, settings.ray_token_file).version()
    except RayAwayError:
        return False
    return True


def _write_secret(path: Path, text: str) -> None:
    """A file that nobody else can read, from its first byte on."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


if __name__ == "__main__":
    command.run(main)
