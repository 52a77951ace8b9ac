"""Settings of `magnet serve`: those in STORAGE/service.yaml, changed by the command line, with free ports."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa
import yaml

from ray_jobs.cluster.processes import free_port
from service.errors import UsageError
from service.queue.grants import SECRETS
from service.settings.parsing import parse, read_values
from service.settings.service import ServiceSettings

PORT = 8290
"""Default port of the API."""


def update_settings(storage: Path, options: argparse.Namespace) -> ServiceSettings:
    """Change the stored settings as the command line says, store them, and return them.

    The ports of Ray and MLflow stay those of the last start, so that old links keep working, unless another process
    uses them.

    Args:
        storage: absolute path of the storage folder.
        options: options `allow`, `allow_write`, `port` and `set` of the command line.

    Raises:
        UsageError: a place or setting cannot be used; the stored settings are then unchanged.
    """
    file = storage / "service.yaml"
    values = read_values(str(file) if file.exists() else None, options.set)
    private = storage / "private"
    # These values follow from this start, and replace those in the file.
    values |= {
        "storage": str(storage),
        "python": sys.executable,
        "ray": _choose_address(values.get("ray"), "Ray"),
        "ray_token_file": str(private / "ray-token"),
        "mlflow": _choose_address(values.get("mlflow"), "MLflow"),
        "mlflow_token_file": str(private / "mlflow-token"),
        "port": options.port or values.get("port", PORT),
    }
    if options.allow or options.allow_write:
        writable = [_resolve_place(name, storage) for name in options.allow_write]
        readable = [
            place for place in (_resolve_place(name, storage) for name in options.allow) if place not in writable
        ]
        values["places"] = [{"prefix": place, "write": ["*"]} for place in writable]
        values["places"] += [{"prefix": place} for place in readable]
    settings = parse(ServiceSettings, values, str(file))
    if settings.database and sa.make_url(settings.database).password:
        raise UsageError(
            "database: service.yaml must hold no passwords; remove it from the URL, and set PGPASSWORD or ~/.pgpass"
        )
    # Replaced as a whole and after all checks: an invalid option must not damage the stored settings.
    new = file.with_name(".service.yaml.new")
    new.write_text(yaml.safe_dump(values, sort_keys=False))
    new.replace(file)
    return settings


def _choose_address(stored: str | None, part: str) -> str:
    """Return a loopback address for a part: the stored one if its port is free, else one with another port."""
    port = urlsplit(stored).port if stored else None
    if port is not None and not _is_free(port):
        print(f"port {port} of {part} is in use by another process, so old links to {part} no longer work", flush=True)
        port = None
    return f"http://127.0.0.1:{port or free_port()}"


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # connections of the last run may still be closing
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _resolve_place(name: str, storage: Path) -> str:
    """Return a place that jobs may use: a URI unchanged, a path as an absolute one.

    Raises:
        UsageError: the place is in the service's own folder.
    """
    if "://" in name:
        return name
    place = Path(name).expanduser().resolve()
    if place.is_relative_to(storage):
        raise UsageError(
            f"{place} is in the service's own folder, in which the jobs of each user have their own part; "
            f"name a folder outside {storage}"
        )
    # These stay closed to jobs, but the user may not expect that they are in a place.
    closed = [folder for folder in map(_expand, SECRETS) if folder.exists() and folder.is_relative_to(place)]
    for folder in closed:
        print(f"warning: {place} contains {folder}, which stays closed to jobs; name a narrower folder", flush=True)
    return str(place)


def _expand(folder: str) -> Path:
    return Path(os.path.realpath(Path(folder).expanduser()))


def describe_places(settings: ServiceSettings) -> list[str]:
    """Return one line for each place: its prefix, and who may read and write it."""
    return [
        f"{place.prefix}  (read: {', '.join(place.read)}; write: {', '.join(place.write) or 'nobody'})"
        for place in settings.places
    ]
