"""Settings of `magnet serve`: what STORAGE/service.yaml keeps, what the command line changes, and free ports."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
import yaml

from ray_jobs.cluster.processes import free_port
from service.errors import UsageError
from service.queue.grants import SECRETS
from service.settings.parsing import parse, read_values
from service.settings.service import ServiceSettings

PORT = 8290
"""Of the API, where neither the command line nor the kept settings name one."""


def serve_settings(storage: Path, options: argparse.Namespace) -> ServiceSettings:
    """The settings in force, which STORAGE/service.yaml keeps from now on.

    Ports of Ray and MLflow stay those of the last start, so that links live on, unless another process took them.

    Args:
        storage: made absolute.
        options: `allow`, `allow_write`, `port` and `set` of the command line.

    Raises:
        UsageError: a place or setting cannot be used.
    """
    kept = storage / "service.yaml"
    values = read_values(str(kept) if kept.exists() else None, options.set)
    private = storage / "private"
    values |= {
        "storage": str(storage),
        "python": sys.executable,
        "ray": _address(values.get("ray"), "Ray"),
        "ray_token_file": str(private / "ray-token"),
        "mlflow": _address(values.get("mlflow"), "MLflow"),
        "mlflow_token_file": str(private / "mlflow-token"),
        "port": options.port or values.get("port", PORT),
    }
    if options.allow or options.allow_write:
        writable = [_place(name, storage) for name in options.allow_write]
        readable = [place for place in (_place(name, storage) for name in options.allow) if place not in writable]
        values["places"] = [{"prefix": place, "write": ["*"]} for place in writable]
        values["places"] += [{"prefix": place} for place in readable]
    found = parse(ServiceSettings, values, str(kept))
    if found.database and sa.make_url(found.database).password:
        raise UsageError("database: service.yaml holds no passwords; leave it out, and set PGPASSWORD or ~/.pgpass")
    new = kept.with_name(".service.yaml.new")
    new.write_text(yaml.safe_dump(values, sort_keys=False))
    new.replace(kept)
    return found


def _address(kept: str | None, part: str) -> str:
    """A loopback address for a part: the kept one while its port is free."""
    port = urlsplit(kept).port if kept else None
    if port is not None and not _is_free(port):
        print(f"port {port} of {part} is in use by another process: old links to {part} end here", flush=True)
        port = None
    return f"http://127.0.0.1:{port or free_port()}"


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # links of the last run may still be closing
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _place(name: str, storage: Path) -> str:
    """A place that jobs may use.

    Raises:
        UsageError: it lies in the service's own folder.
    """
    if "://" in name:
        return name
    place = Path(name).expanduser().resolve()
    if place.is_relative_to(storage):
        raise UsageError(
            f"{place} lies in the service's own folder, of which each user's jobs use their own part; "
            f"name a folder outside {storage}"
        )
    closed = [folder for folder in map(_expanded, SECRETS) if folder.exists() and folder.is_relative_to(place)]
    for folder in closed:
        print(f"warning: {place} holds {folder}, which stays closed to jobs; name a narrower folder", flush=True)
    return str(place)


def _expanded(folder: str) -> Path:
    return Path(os.path.realpath(Path(folder).expanduser()))


def describe_places(settings: ServiceSettings) -> list[str]:
    """One line for each place, as the start prints it."""

    def line(place: dict[str, Any]) -> str:
        write = ", ".join(place["write"]) or "nobody"
        return f"{place['prefix']}  (read: {', '.join(place['read'])}; write: {write})"

    return [line({"prefix": one.prefix, "read": one.read, "write": one.write}) for one in settings.places]
