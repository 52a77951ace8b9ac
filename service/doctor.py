"""Whether everything that the service needs is there, and how to mend what is not."""

from __future__ import annotations

import importlib.metadata
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import httpx2

from service import storage
from service.client import Client, ServiceError
from service.environment import client_settings
from service.errors import MagnetError
from service.queue.lease import Lease
from service.queue.ray_api import RayJobs
from service.queue.tables import Database
from service.service_settings import ServiceSettings

PACKAGES = ("torch", "ray", "mlflow", "dbos", "fastapi", "obstore", "imagecodecs", "openslide-python")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    well: bool
    detail: str
    mend: str = ""

    def line(self) -> str:
        """As it is printed."""
        mend = "" if self.well or not self.mend else f"\n         to mend: {self.mend}"
        return f"  {'ok  ' if self.well else 'WRONG'} {self.what}: {self.detail}{mend}"


def findings(settings: ServiceSettings) -> list[Finding]:
    """Look at everything; each look stands alone, so that one thing that is away hides no other."""
    looks: list[tuple[str, Callable[[ServiceSettings], Finding], str]] = [
        ("storage", _storage, "check the credentials (AWS_*), AWS_ENDPOINT_URL, and that the bucket or folder exists"),
        ("database", _database, "start it, check `database` in the service's settings, and the rights of its user"),
        ("dispatcher", _dispatcher, "start one: magnet dispatch --config FILE, or magnet serve"),
        ("ray", _ray, "start the cluster, check `ray` in the settings, RAY_AUTH_MODE and RAY_AUTH_TOKEN"),
        ("gpu", _gpu, "add nodes with GPUs, or go on: training on CPUs is slow but works"),
        ("mlflow", _mlflow, "start it: mlflow server ..., with --allowed-hosts for names other than localhost"),
        ("api", _api, "start it: magnet api --config FILE; set MAGNET_URL and MAGNET_TOKEN"),
        ("versions", _versions, "make the environment anew: pip install -e . -c constraints.txt"),
    ]
    found = []
    for what, look, mend in looks:
        try:
            found.append(look(settings))
        except (MagnetError, httpx2.HTTPError, OSError) as error:
            told = (str(error) or type(error).__name__).splitlines()[0]
            found.append(Finding(what, False, told, mend))
    return found


def _storage(settings: ServiceSettings) -> Finding:
    place, data = storage.join(settings.storage, f"doctor-{uuid.uuid4().hex}"), b"doctor"
    storage.write_bytes(place, data)
    same = storage.read_bytes(place) == data
    storage.delete(place)
    return Finding("storage", same, f"{settings.storage} can be written, read and cleared")


def _database(settings: ServiceSettings) -> Finding:
    database = Database(settings.database_url)
    with database.reading():
        name = database.engine.dialect.name
        shown = database.engine.url.render_as_string(hide_password=True)
    database.close()
    return Finding("database", True, f"{name} at {shown}")


def _dispatcher(settings: ServiceSettings) -> Finding:
    database = Database(settings.database_url)
    lease = Lease(database, "dispatcher", "doctor", 1.0)
    if idle := lease.take():
        lease.give_back()
    database.close()
    if idle:
        return Finding(
            "dispatcher", False, "none is at work; jobs wait", "magnet dispatch --config FILE, or magnet serve"
        )
    return Finding("dispatcher", True, "at work")


def _ray(settings: ServiceSettings) -> Finding:
    ray = RayJobs(settings.ray, settings.ray_token_file)
    there, here = ray.version(), importlib.metadata.version("ray")
    detail = f"Ray {there} at {settings.ray}, {len(ray.nodes())} node(s)"
    mend = f"install ray=={there} here or ray=={here} there: jobs and cluster must be of one version"
    return Finding("ray", there == here, detail + ("" if there == here else f"; here is {here}"), mend)


def _gpu(settings: ServiceSettings) -> Finding:
    totals = [
        node["raylet"].get("resourcesTotal", {}) for node in RayJobs(settings.ray, settings.ray_token_file).nodes()
    ]
    gpus, cpus = (sum(total.get(name, 0) for total in totals) for name in ("GPU", "CPU"))
    return Finding("gpu", True, f"the cluster has {gpus:g} GPU(s) and {cpus:g} CPU(s)")


def _mlflow(settings: ServiceSettings) -> Finding:
    if settings.mlflow is None or not settings.mlflow.startswith("http"):
        return Finding("mlflow", True, "no server; each user's runs are in a file of the user's own")
    # Not /health: that answers also where the server refuses the name under which it is called.
    url = f"{settings.mlflow.rstrip('/')}/api/2.0/mlflow/experiments/search"
    try:
        headers = {}
        if settings.mlflow_token_file is not None:
            token = storage.read_bytes(settings.mlflow_token_file).decode().strip()
            headers = {"Authorization": f"Bearer {token}"}
        reply = httpx2.post(url, json={"max_results": 1}, headers=headers, timeout=10, trust_env=False)
    except httpx2.HTTPError as error:
        raise MagnetError(f"no answer from {settings.mlflow}: {error or type(error).__name__}") from error
    detail = f"{settings.mlflow} answers {reply.status_code}"
    mend = "401: check mlflow_token_file; 403: name its host in --allowed-hosts; others: see its log"
    return Finding("mlflow", reply.status_code == 200, detail, mend)


def _api(settings: ServiceSettings) -> Finding:
    known = client_settings()
    with Client(known.url, known.token, patience_s=0) as client:
        try:
            client.jobs(limit=1)
        except ServiceError as error:
            return Finding("api", False, f"{known.url}: {error.message}", error.to_do)
    return Finding("api", True, f"{known.url} takes our token")


def _versions(_: ServiceSettings) -> Finding:
    found, missing = [f"Python {sys.version_info[0]}.{sys.version_info[1]}"], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    detail = ", ".join(found) + (f"; missing: {', '.join(missing)}" if missing else "")
    return Finding("versions", not missing, detail, f"pip install {' '.join(missing)}")
