"""The service of `magnet serve`: starts its parts in order, and starts those that die again until it is interrupted."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ray_jobs.cluster.processes import answers
from ray_jobs.serving.commands import make_parts, make_ray_part
from ray_jobs.serving.folder import find_own_token, make_temporary_folder, prepare_folder, write_secret
from ray_jobs.serving.parts import PRIVATE_UMASK, Part
from ray_jobs.serving.settings import describe_places, update_settings
from service.environment import CLIENT_FILE
from service.operations.restore import Layout, lock_folder
from service.queue.ray_api import RayJobs, RayUnavailableError
from service.settings.service import ServiceSettings

POLL_S = 0.5
"""Seconds between two looks at the parts."""


def run_service(options: argparse.Namespace) -> int:
    """Run the service until SIGINT or SIGTERM, and return the exit status.

    Args:
        options: options of `magnet serve`.

    Raises:
        UsageError: the folder or a setting cannot be used.
    """
    storage = Path(options.storage).expanduser().resolve()
    umask = os.umask(PRIVATE_UMASK)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    parts: list[Part] = []
    try:
        with ExitStack() as stack:
            private = prepare_folder(storage)
            stack.enter_context(lock_folder(private))
            if Layout(storage).finish_interrupted():
                print("completed a restore that was interrupted", flush=True)
            settings = update_settings(storage, options)
            temporary = stack.enter_context(make_temporary_folder(private))
            # Jobs write where the user allows it, with the umask that the user's other programs have.
            ray = make_ray_part(settings, private, temporary, options.cpus, umask)
            parts += [ray, *make_parts(settings, storage, ray.env)]
            # An ExitStack runs its callbacks in reverse order, so that Ray stops first.
            for part in reversed(parts):
                stack.callback(part.stop)
            for part in parts:
                part.start()
            _store_client_file(settings, storage)
            _print_addresses(settings, storage)
            _keep_running(settings, parts)
    except KeyboardInterrupt:
        pass
    return 0


def _interrupt(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # an orderly stop takes seconds; a second signal must not break it off
    print("stopping", flush=True)
    raise KeyboardInterrupt


def _keep_running(settings: ServiceSettings, parts: list[Part]) -> None:
    """Start parts again that die, and print once when each part responds, until interrupted."""
    probes = _make_probes(settings)
    while True:
        for part in parts:
            part.revive()
        for part in parts:
            if not part.has_responded and probes[part.name]():
                part.has_responded = True
                print(f"{part.name} is up", flush=True)
                if all(part.has_responded for part in parts):
                    print("all parts are up", flush=True)
        time.sleep(POLL_S)


def _make_probes(settings: ServiceSettings) -> dict[str, Callable[[], bool]]:
    """Return for each part a function that returns whether the part responds."""
    api = f"http://{settings.host}:{settings.port}"

    def probe_ray() -> bool:
        try:
            RayJobs(settings.ray, settings.ray_token_file).version()
        except RayUnavailableError:
            return False
        return True

    return {
        "Ray": probe_ray,
        "MLflow": lambda: answers(f"{settings.mlflow}/health"),
        "the API": lambda: answers(f"{api}/healthz"),
        "the dispatcher": lambda: answers(f"{api}/readyz"),
    }


def _store_client_file(settings: ServiceSettings, storage: Path) -> None:
    """Store the user's token where the commands find it, unless the file names another service."""
    url, file = f"http://{settings.host}:{settings.port}", Path(CLIENT_FILE).expanduser()
    token_file = storage / "private" / "admin-token"
    token = find_own_token(settings, token_file)
    if not file.exists() or json.loads(file.read_text()).get("url") == url:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_secret(file, json.dumps({"url": url, "token": token}))
    else:
        print(f"{file} names another service; for this one: export MAGNET_URL={url} MAGNET_TOKEN=$(cat {token_file})")


def _print_addresses(settings: ServiceSettings, storage: Path) -> None:
    """Print the addresses of the parts, the places that jobs may use, and what to try."""
    private = storage / "private"
    print(f"API          http://{settings.host}:{settings.port}/docs")
    print(f"MLflow       {settings.mlflow}  (any user name; the password is your token: {private / 'admin-token'})")
    print(f"Ray          {settings.ray}  (token: {settings.ray_token_file})")
    for place in describe_places(settings) or ["none: jobs use only their user's own folder; see --allow"]:
        print(f"place        {place}")
    print(f"logs         {private / 'logs'}")
    print(f"try          magnet doctor --config {storage / 'service.yaml'}", flush=True)
