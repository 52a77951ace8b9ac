"""Commands of the service's parts: Ray, MLflow, the dispatcher and the API."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from ray_jobs.cluster.processes import free_port
from ray_jobs.serving.folder import read_or_create_secret
from ray_jobs.serving.parts import Part
from service.settings.service import ServiceSettings

BIN = Path(sys.executable).parent
"""Folder of this environment's commands."""
OBJECT_STORE_BYTES = 512 << 20
"""Size of Ray's shared memory in bytes."""


def make_ray_part(settings: ServiceSettings, private: Path, temporary: Path, num_cpus: int, umask: int) -> Part:
    """Return a Ray cluster of one node, with its own ports and its own temporary folder.

    Args:
        settings: service settings; Ray's address and token file are used.
        private: private part of the storage folder.
        temporary: folder for Ray's sockets and logs.
        num_cpus: number of CPUs of the cluster.
        umask: umask of the processes, which jobs inherit.
    """
    read_or_create_secret(private / "ray-token")
    # Other clusters on this machine may use Ray's default ports.
    ports = {name: str(free_port()) for name in ("", "ray-client-server-", "dashboard-agent-listen-")}
    ports["dashboard-"] = settings.ray.rpartition(":")[2]
    argv = [
        *(str(BIN / "ray"), "start", "--head", "--block", f"--num-cpus={num_cpus}", "--node-ip-address=127.0.0.1"),
        *(f"--{name}port={port}" for name, port in ports.items()),
        *("--disable-usage-stats", f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={temporary}"),
    ]
    # In spite of --node-ip-address, Ray's ports listen on all interfaces, and who can use them can run code.
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(settings.ray_token_file)}
    env |= {"RAY_API_SERVER_ADDRESS": settings.ray}
    return Part("Ray", argv, private / "logs" / "ray.log", env, umask=umask)


def make_parts(settings: ServiceSettings, storage: Path, ray_env: Mapping[str, str]) -> list[Part]:
    """Return MLflow, the dispatcher and the API.

    Args:
        settings: service settings.
        storage: the storage folder.
        ray_env: environment variables with which Ray's clients authenticate.
    """
    private, config = storage / "private", ["--config", str(storage / "service.yaml")]
    read_or_create_secret(private / "mlflow-token")
    magnet = [sys.executable, "-c", "from service.cli.main import main; main()"]
    mlflow = [
        *(sys.executable, "-m", "ray_jobs.serving.mlflow_guard", *config),
        *("--port", str(settings.mlflow).rpartition(":")[2]),
        *("--backend-store-uri", f"sqlite:///{private}/mlflow.db"),
        *("--artifacts-destination", str(storage / "artifacts")),
    ]
    logs = private / "logs"
    return [
        Part("MLflow", mlflow, logs / "mlflow.log"),
        Part("the dispatcher", [*magnet, "dispatch", *config], logs / "dispatcher.log", ray_env),
        Part("the API", [*magnet, "api", *config], logs / "api.log", ray_env),
    ]
