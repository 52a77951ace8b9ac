"""Checks of the parts that the service needs, and how to fix those that fail."""

from __future__ import annotations

import importlib.metadata
import shutil
import ssl
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import obstore
import sqlalchemy as sa

from service import environment, storage
from service.client.client import Client, ServiceError
from service.errors import MagnetError
from service.operations.file_modes import open_to_others
from service.queue.ray_api import RayJobs
from service.queue.tables import Database, DatabaseCorruptError, leases
from service.settings.service import ServiceSettings
from service.storage.http import HttpStore
from service.storage.stores import Store, attempt

PACKAGES = ("torch", "ray", "mlflow", "dbos", "fastapi", "obstore", "imagecodecs", "openslide-python")
LOWEST_FREE_BYTES = 10e9
"""Of the storage's disk; checkpoints, logs and tables of a few trainings."""
MOST_SKEW_S = 60.0
"""Seconds between this clock and the store's; S3 refuses requests from 15 minutes on, and leases expire by it."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that mean all interfaces, and the one to call."""


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check."""

    name: str
    ok: bool
    detail: str
    fix: str = ""

    def line(self) -> str:
        """As it is printed."""
        fix = "" if self.ok or not self.fix else f"\n         fix: {self.fix}"
        return f"  {'ok    ' if self.ok else 'FAILED'} {self.name}: {self.detail}{fix}"


def run_checks(settings: ServiceSettings) -> list[Check]:
    """Run all checks; each is independent, so that one failure hides no other."""
    checks: list[tuple[str, Callable[[ServiceSettings], Check], str]] = [
        ("storage", _storage, "check the credentials (AWS_*), AWS_ENDPOINT_URL, and that the bucket or folder exists"),
        ("disk", _disk, "check that the folder exists"),
        ("secrets", _secrets, "check the owner of the files"),
        ("network", _network, "check host, hosts, tls_certificate and tls_key in the settings"),
        ("database", _database, "start it, check `database` in the service's settings, and the rights of its user"),
        ("dispatcher", _dispatcher, "start one: magnet dispatch --config FILE, or magnet serve"),
        ("ray", _ray, "start the cluster, check `ray` in the settings, RAY_AUTH_MODE and RAY_AUTH_TOKEN"),
        ("gpu", _gpu, "add nodes with GPUs; without them jobs run on CPUs, slowly"),
        ("mlflow", _mlflow, "start it: mlflow server ..., with --allowed-hosts for names other than localhost"),
        ("api", _api, "start it: magnet api --config FILE, or magnet serve"),
        ("versions", _versions, "reinstall the environment: pip install -e . -c constraints.txt"),
    ]
    outcomes = []
    for name, check, fix in checks:
        try:
            outcomes.append(check(settings))
        except (MagnetError, httpx2.HTTPError, OSError) as error:
            message = (str(error) or type(error).__name__).splitlines()[0]
            outcomes.append(Check(name, False, message, fix))
    return outcomes


def _storage(settings: ServiceSettings) -> Check:
    place, data = storage.join(settings.storage, f"doctor-{uuid.uuid4().hex}"), b"doctor"
    before_s = time.time()
    storage.write_bytes(place, data)
    after_s = time.time()
    try:
        same, written_s = storage.read_bytes(place) == data, _written_s(place)
    finally:
        storage.delete(place)
    if not same:
        return Check("storage", False, f"{settings.storage} returns other bytes than were written")
    skew_s = max(before_s - written_s, written_s - after_s, 0.0)
    if skew_s > MOST_SKEW_S:
        detail = f"the clock of {settings.storage} differs from this machine's by {skew_s:.0f} s"
        return Check("storage", False, detail, "set both clocks by NTP")
    return Check("storage", True, f"{settings.storage} can be written, read and cleared")


def _written_s(place: str) -> float:
    """When an object was written by the store's clock, in seconds since 1970."""
    if "://" not in place:
        return Path(place).stat().st_mtime

    def modified_s(store: Store, key: str) -> float:
        assert not isinstance(store, HttpStore)  # nothing was written there
        return obstore.head(store, key)["last_modified"].timestamp()

    return attempt(place, modified_s)


def _disk(settings: ServiceSettings) -> Check:
    if "://" in settings.storage:
        return Check("disk", True, "the storage is an object store")
    usage = shutil.disk_usage(settings.storage)
    detail = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.0f} GB are free at {settings.storage}"
    return Check("disk", usage.free >= LOWEST_FREE_BYTES, detail, "free disk space, or lower keep_days in the settings")


def _secrets(settings: ServiceSettings) -> Check:
    """Whether other users of this machine can read secrets."""
    private = [] if "://" in settings.storage else [Path(settings.storage) / "private"]
    named = (settings.ray_token_file, settings.mlflow_token_file, settings.tls_key, environment.CLIENT_FILE)
    files = [Path(file).expanduser() for file in named if file is not None and "://" not in file]
    missing = [str(file) for file in files[:-1] if not file.exists()]  # the client file is optional
    if missing:
        return Check("secrets", False, f"no such file: {', '.join(missing)}", "make it, or change the settings")
    if found := open_to_others([*private, *files]):
        names = " ".join(str(path) for path in found)
        detail = f"other users can read {', '.join(map(str, found))}"
        return Check("secrets", False, detail, f"chmod -R go-rwx {names}")
    return Check("secrets", True, "only their owner can read the files with secrets")


def _network(settings: ServiceSettings) -> Check:
    if settings.tls_certificate is not None and settings.tls_key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key)
        except (ssl.SSLError, OSError) as error:
            return Check(
                "network",
                False,
                f"tls_certificate and tls_key cannot be used: {error}",
                "name PEM files of a certificate and of its key, without a password",
            )
    if settings.host in LOOPBACK:
        return Check("network", True, f"the API listens on {settings.host} only")
    if settings.tls_certificate is None and not settings.trusted_proxies:
        return Check(
            "network",
            False,
            f"the API listens on {settings.host} without TLS: tokens can be read on the way",
            "set tls_certificate and tls_key, or put a proxy with TLS in front and name it in trusted_proxies",
        )
    if not settings.hosts:
        detail = f"the API listens on {settings.host}, but no names are set under which it may be called"
        return Check("network", False, detail, "set hosts, such as hosts: [magnet.lab]")
    return Check("network", True, f"the API listens on {settings.host} for {', '.join(settings.hosts)}")


def _database(settings: ServiceSettings) -> Check:
    try:
        database = Database(settings.database_url)
        try:
            with database.reading() as connection:
                name = database.engine.dialect.name
                shown = database.engine.url.render_as_string(hide_password=True)
                if name == "sqlite" and (said := connection.scalar(sa.text("PRAGMA quick_check(1)"))) != "ok":
                    return _corrupt(f"{shown}: {said}")
        finally:
            database.close()
    except DatabaseCorruptError as error:
        return _corrupt(str(error))
    return Check("database", True, f"{name} at {shown}")


def _corrupt(detail: str) -> Check:
    fix = "stop API and dispatcher, keep a copy of the file, and restore a backup; starting again does not help"
    return Check("database", False, f"the database is corrupt: {detail.splitlines()[0]}", fix)


def _dispatcher(settings: ServiceSettings) -> Check:
    try:
        database = Database(settings.database_url)
    except DatabaseCorruptError:
        return Check("dispatcher", False, "unknown: the database is unavailable", "fix the database first")
    try:
        with database.reading() as connection:
            until_s = connection.scalar(sa.select(leases.c.until_s).where(leases.c.name == "dispatcher"))
    finally:
        database.close()
    if until_s is None or until_s < time.time():
        fix = "magnet dispatch --config FILE, or magnet serve"
        return Check("dispatcher", False, "none is running; jobs wait", fix)
    return Check("dispatcher", True, "running")


def _ray(settings: ServiceSettings) -> Check:
    ray = RayJobs(settings.ray, settings.ray_token_file)
    there, here = ray.version(), importlib.metadata.version("ray")
    detail = f"Ray {there} at {settings.ray}, {len(ray.nodes())} node(s)"
    fix = f"install ray=={there} here or ray=={here} there: jobs and cluster must be of one version"
    return Check("ray", there == here, detail + ("" if there == here else f"; here is {here}"), fix)


def _gpu(settings: ServiceSettings) -> Check:
    totals = [
        node["raylet"].get("resourcesTotal", {}) for node in RayJobs(settings.ray, settings.ray_token_file).nodes()
    ]
    gpus, cpus = (sum(total.get(name, 0) for total in totals) for name in ("GPU", "CPU"))
    return Check("gpu", True, f"the cluster has {gpus:g} GPU(s) and {cpus:g} CPU(s)")


def _mlflow(settings: ServiceSettings) -> Check:
    if settings.mlflow is None or not settings.mlflow.startswith("http"):
        return Check("mlflow", True, "no server; each user's runs are in a file of the user's own")
    file = settings.mlflow_token_file
    token = environment.mlflow_token() if file is None else storage.read_bytes(file).decode().strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # Not /health: that answers also where the server refuses the name under which it is called, or the token.
    url = f"{settings.mlflow.rstrip('/')}/api/2.0/mlflow/experiments/search"
    try:
        reply = httpx2.post(url, json={"max_results": 1}, headers=headers, timeout=10, trust_env=False)
    except httpx2.HTTPError as error:
        raise MagnetError(f"no answer from {settings.mlflow}: {error or type(error).__name__}") from error
    detail = f"{settings.mlflow} answers {reply.status_code}{' to the token' if token else ''}"
    fix = "401: set mlflow_token_file; 403: name its host in --allowed-hosts (MLFLOW_SERVER_ALLOWED_HOSTS); see its log"
    return Check("mlflow", reply.status_code == 200, detail, fix)


def _api(settings: ServiceSettings) -> Check:
    """Call the API of these settings, with the stored token only if the token is for this API."""
    url = api_url(settings)
    known = environment.client_settings()
    token = known.token if _same_service(known.url, url, settings) else None
    transport = None if settings.tls_certificate is None else httpx2.HTTPTransport(verify=_trusting(settings))
    with Client(url, token, patience_s=0, transport=transport) as client:
        try:
            client.alive()
            if token is None:
                return Check("api", True, f"{url} answers; no token for it is stored here, so none was tried")
            client.jobs(limit=1)
        except ServiceError as error:
            fix = "start it: magnet api --config FILE, or magnet serve" if error.status == 0 else error.to_do
            return Check("api", False, f"{url}: {error.message}", fix)
    return Check("api", True, f"{url} answers and accepts the stored token")


def api_url(settings: ServiceSettings) -> str:
    """The URL at which a service's API can be called from its own machine."""
    host = ANY_ADDRESS.get(settings.host, settings.host)
    scheme = "http" if settings.tls_certificate is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _same_service(stored: str, url: str, settings: ServiceSettings) -> bool:
    """Whether a stored token's URL is the API's: by its address, or by one of the names in the settings."""
    one, other = urlsplit(stored), urlsplit(url)
    if one.hostname in settings.hosts:  # the port may be that of a proxy
        return True
    hosts = {other.hostname, *(LOOPBACK if settings.host in (*LOOPBACK, *ANY_ADDRESS) else ())}
    return (one.scheme, one.port) == (other.scheme, other.port) and one.hostname in hosts


def _trusting(settings: ServiceSettings) -> ssl.SSLContext:
    """A context that accepts the service's own certificate, whatever name it is for, as long as it is valid."""
    context = ssl.create_default_context(cafile=settings.tls_certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


def _versions(_: ServiceSettings) -> Check:
    found, missing = [f"Python {sys.version_info[0]}.{sys.version_info[1]}"], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    detail = ", ".join(found) + (f"; missing: {', '.join(missing)}" if missing else "")
    return Check("versions", not missing, detail, f"pip install {' '.join(missing)}")
