"""The whole service on this machine by one command: API, dispatcher, a Ray cluster and an MLflow server.

    magnet serve --storage ~/magnet-service --allow s3://lab/slides --allow-write s3://lab/results

API, MLflow and Ray's dashboard listen on the loopback interface only; Ray's other ports listen everywhere, as Ray will
have it, behind a token that the first start makes. MLflow wants a token too: your own, as the password that the browser
asks for. The user's own token lies, with the address, in ~/.config/magnet/client.json, where `magnet submit` and the
others find it. Settings are kept in STORAGE/service.yaml, which may be edited; options change what is kept. Ray may
take a minute to come up; jobs can be submitted before, and wait. A part that dies is started again. Ctrl-C stops all of
it; jobs that ran continue from their last checkpoint at the next start.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from ray_jobs.cluster.processes import answers, free_port
from ray_jobs.command_line import command
from ray_jobs.serving.folder import own_token, prepare, secret, temporary_folder, write_secret
from ray_jobs.serving.parts import PRIVATE, Part
from ray_jobs.serving.settings import PORT, describe_places, serve_settings
from service.environment import CLIENT_FILE
from service.operations.restore import Layout, locked
from service.queue.ray_api import RayAwayError, RayJobs
from service.settings.service import ServiceSettings

HERE = Path(sys.executable).parent
"""Of this environment's commands."""
OBJECT_STORE_BYTES = 512 << 20
"""Ray's shared memory."""


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    options = _parser().parse_args(arguments)
    storage = Path(options.storage).expanduser().resolve()
    umask = os.umask(PRIVATE)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    parts: list[Part] = []
    try:
        with ExitStack() as stack:
            private = prepare(storage)
            stack.enter_context(locked(private))
            if Layout(storage).finish_interrupted():
                print("completed a restore that was interrupted", flush=True)
            settings = serve_settings(storage, options)
            # Jobs write where the user lets them, with the rights that the user's own programs give.
            ray = _ray(settings, private, stack.enter_context(temporary_folder(private)), options.cpus, umask)
            parts += [ray, *_other_parts(settings, storage, ray.env)]
            for part in reversed(parts):
                stack.callback(part.stop)
            for part in parts:
                part.start()
            _introduce(settings, storage)
            _keep_alive(settings, parts)
    except KeyboardInterrupt:
        pass
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="magnet serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--storage", default="~/magnet-service", help="folder of everything that it keeps (default: %(default)s)")
    add("--allow", action="append", default=[], metavar="PREFIX", help="folder or prefix that all users' jobs may read")
    add("--allow-write", action="append", default=[], metavar="PREFIX", help="the same to read and to write")
    add("--port", type=int, help=f"of the API (default: as at the last start, or {PORT})")
    add("--cpus", type=int, default=max(2, os.cpu_count() or 2), help="of the Ray cluster (default: all)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the service; it is kept")
    return parser


def _interrupt(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # once is enough: stopping in order takes seconds
    print("stopping", flush=True)
    raise KeyboardInterrupt


def _keep_alive(settings: ServiceSettings, parts: list[Part]) -> None:
    """Start parts again that die, and say once when each of them answers, until interrupted."""
    probes = _probes(settings)
    while True:
        for part in parts:
            part.revive()
        for part in parts:
            if not part.answered and probes[part.name]():
                part.answered = True
                print(f"{part.name} is up", flush=True)
                if all(one.answered for one in parts):
                    print("all parts are up", flush=True)
        time.sleep(0.5)


def _ray(settings: ServiceSettings, private: Path, temporary: Path, num_cpus: int, umask: int) -> Part:
    """A cluster of one node, addressed by its own ports and with a folder of its own."""
    secret(private / "ray-token")
    ports = {name: str(free_port()) for name in ("", "ray-client-server-", "dashboard-agent-listen-")}
    ports["dashboard-"] = settings.ray.rpartition(":")[2]
    words = [
        *(str(HERE / "ray"), "start", "--head", "--block", f"--num-cpus={num_cpus}", "--node-ip-address=127.0.0.1"),
        *(f"--{what}port={port}" for what, port in ports.items()),
        *("--disable-usage-stats", f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={temporary}"),
    ]
    # Whatever --node-ip-address says, Ray's ports listen on all interfaces, and whoever reaches them runs code.
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(settings.ray_token_file)}
    env |= {"RAY_API_SERVER_ADDRESS": settings.ray}
    return Part("Ray", words, private / "logs" / "ray.log", env, umask=umask)


def _other_parts(settings: ServiceSettings, storage: Path, ray_env: Mapping[str, str]) -> list[Part]:
    private, config = storage / "private", ["--config", str(storage / "service.yaml")]
    secret(private / "mlflow-token")
    magnet = [sys.executable, "-c", "from service.cli.main import main; main()"]
    mlflow = [
        *(
            sys.executable,
            "-m",
            "ray_jobs.serving.mlflow_guard",
            *config,
            "--port",
            str(settings.mlflow).rpartition(":")[2],
        ),
        *("--backend-store-uri", f"sqlite:///{private}/mlflow.db"),
        *("--artifacts-destination", str(storage / "artifacts")),
    ]
    logs = private / "logs"
    return [
        Part("MLflow", mlflow, logs / "mlflow.log"),
        Part("the dispatcher", [*magnet, "dispatch", *config], logs / "dispatcher.log", ray_env),
        Part("the API", [*magnet, "api", *config], logs / "api.log", ray_env),
    ]


def _introduce(settings: ServiceSettings, storage: Path) -> None:
    """Print where everything is; leave the user's token where the commands find it."""
    url, file = f"http://{settings.host}:{settings.port}", Path(CLIENT_FILE).expanduser()
    token_file = storage / "private" / "admin-token"
    token = own_token(settings, token_file)
    if not file.exists() or json.loads(file.read_text()).get("url") == url:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_secret(file, json.dumps({"url": url, "token": token}))
    else:
        print(f"{file} names another service; for this one: export MAGNET_URL={url} MAGNET_TOKEN=$(cat {token_file})")
    print(f"API          {url}/docs")
    print(f"MLflow       {settings.mlflow}  (any name; the password is your token: {token_file})")
    print(f"Ray          {settings.ray}  (token: {settings.ray_token_file})")
    for place in describe_places(settings) or ["none: jobs use only their user's own folder; see --allow"]:
        print(f"place        {place}")
    print(f"logs         {storage / 'private' / 'logs'}")
    print(f"try          magnet doctor --config {storage / 'service.yaml'}", flush=True)


def _probes(settings: ServiceSettings) -> dict[str, Callable[[], bool]]:
    """Whether each part answers; jobs that are submitted before wait for it."""
    api = f"http://{settings.host}:{settings.port}"

    def ray() -> bool:
        try:
            RayJobs(settings.ray, settings.ray_token_file).version()
        except RayAwayError:
            return False
        return True

    return {
        "Ray": ray,
        "MLflow": lambda: answers(f"{settings.mlflow}/health"),
        "the API": lambda: answers(f"{api}/healthz"),
        "the dispatcher": lambda: answers(f"{api}/readyz"),
    }


if __name__ == "__main__":
    command.run(main)
