"""Checks of the service's parts: database, dispatcher, Ray, MLflow and the API."""

from __future__ import annotations

import importlib.metadata
import ssl
import time
from urllib.parse import urlsplit

import httpx2
import sqlalchemy as sa

from service import environment, storage
from service.api.gate.hosts import LOOPBACK
from service.client import Client, ServiceError
from service.errors import MagnetError
from service.operations.check import Check
from service.queue.ray_api import RayJobs
from service.queue.tables import Database, DatabaseCorruptError, leases
from service.settings.service import ServiceSettings

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that mean all interfaces, and the loopback address to call instead."""
MLFLOW_TIMEOUT_S = 10
"""Seconds that MLflow has to respond."""


def check_database(settings: ServiceSettings) -> Check:
    """Check that the queue's database is reachable and intact."""
    try:
        database = Database(settings.database_url)
        try:
            with database.reading() as connection:
                name = database.engine.dialect.name
                url = database.engine.url.render_as_string(hide_password=True)
                if name == "sqlite" and (result := connection.scalar(sa.text("PRAGMA quick_check(1)"))) != "ok":
                    return _report_corrupt(f"{url}: {result}")
        finally:
            database.close()
    except DatabaseCorruptError as error:
        return _report_corrupt(str(error))
    return Check("database", True, f"{name} at {url}")


def _report_corrupt(detail: str) -> Check:
    fix = "stop API and dispatcher, keep a copy of the file, and restore a backup; a restart does not help"
    return Check("database", False, f"the database is corrupt: {detail.splitlines()[0]}", fix)


def check_dispatcher(settings: ServiceSettings) -> Check:
    """Check that a dispatcher holds the lease."""
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
        fix = "start a dispatcher: magnet dispatch --config FILE, or magnet serve"
        return Check("dispatcher", False, "no dispatcher is running, so jobs wait", fix)
    return Check("dispatcher", True, "a dispatcher is running")


def check_ray(settings: ServiceSettings) -> Check:
    """Check that the Ray cluster responds and has this environment's version."""
    ray = RayJobs(settings.ray, settings.ray_token_file)
    cluster_version, own_version = ray.version(), importlib.metadata.version("ray")
    same = cluster_version == own_version
    detail = f"Ray {cluster_version} at {settings.ray}, {len(ray.nodes())} node(s)"
    fix = f"install ray=={cluster_version} here, or ray=={own_version} on the cluster: both need the same version"
    return Check("ray", same, detail + ("" if same else f"; this environment has Ray {own_version}"), fix)


def check_gpus(settings: ServiceSettings) -> Check:
    """Report the number of GPUs and CPUs of the cluster."""
    totals = [
        node["raylet"].get("resourcesTotal", {}) for node in RayJobs(settings.ray, settings.ray_token_file).nodes()
    ]
    num_gpus, num_cpus = (sum(total.get(name, 0) for total in totals) for name in ("GPU", "CPU"))
    return Check("gpu", True, f"the cluster has {num_gpus:g} GPU(s) and {num_cpus:g} CPU(s)")


def check_mlflow(settings: ServiceSettings) -> Check:
    """Check that MLflow responds and accepts the service's token."""
    if settings.mlflow is None or not settings.mlflow.startswith("http"):
        return Check("mlflow", True, "no MLflow server; each user's runs are in the user's own file")
    file = settings.mlflow_token_file
    token = environment.mlflow_token() if file is None else storage.read_bytes(file).decode().strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # Not /health: it responds also where the server refuses the host name under which it is called, or the token.
    url = f"{settings.mlflow.rstrip('/')}/api/2.0/mlflow/experiments/search"
    try:
        response = httpx2.post(url, json={"max_results": 1}, headers=headers, timeout=MLFLOW_TIMEOUT_S, trust_env=False)
    except httpx2.HTTPError as error:
        raise MagnetError(f"no response from {settings.mlflow}: {error or type(error).__name__}") from error
    detail = f"{settings.mlflow} responds with status {response.status_code}{' to the token' if token else ''}"
    fix = (
        "401: set mlflow_token_file; 403: name MLflow's host in --allowed-hosts (MLFLOW_SERVER_ALLOWED_HOSTS); "
        "otherwise see MLflow's log"
    )
    return Check("mlflow", response.status_code == 200, detail, fix)


def check_api(settings: ServiceSettings) -> Check:
    """Check that the API of these settings responds, and accepts the stored token if that is meant for it."""
    url = make_api_url(settings)
    client_settings = environment.read_client_settings()
    # A token must not be sent to another service than its own.
    token = client_settings.token if _is_same_service(client_settings.url, url, settings) else None
    transport = None if settings.tls_certificate is None else httpx2.HTTPTransport(verify=_make_tls_context(settings))
    with Client(url, token, patience_s=0, transport=transport) as client:
        try:
            client.alive()
            if token is None:
                return Check("api", True, f"{url} responds; no token for it is stored here, so none was tried")
            client.jobs(limit=1)
        except ServiceError as error:
            fix = "start the API: magnet api --config FILE, or magnet serve" if error.status == 0 else error.to_do
            return Check("api", False, f"{url}: {error.message}", fix)
    return Check("api", True, f"{url} responds and accepts the stored token")


def make_api_url(settings: ServiceSettings) -> str:
    """Return the URL at which the API can be called from its own machine."""
    host = ANY_ADDRESS.get(settings.host, settings.host)
    scheme = "http" if settings.tls_certificate is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _is_same_service(stored: str, url: str, settings: ServiceSettings) -> bool:
    """Return whether a stored token's URL is the API's, by its address or by a host name in the settings."""
    stored_parts, api_parts = urlsplit(stored), urlsplit(url)
    if stored_parts.hostname in settings.hosts:  # the port may be that of a proxy
        return True
    hosts = {api_parts.hostname, *(LOOPBACK if settings.host in (*LOOPBACK, *ANY_ADDRESS) else ())}
    same_port = (stored_parts.scheme, stored_parts.port) == (api_parts.scheme, api_parts.port)
    return same_port and stored_parts.hostname in hosts


def _make_tls_context(settings: ServiceSettings) -> ssl.SSLContext:
    """Return a context that accepts the service's own certificate while it is valid, for any host name."""
    context = ssl.create_default_context(cafile=settings.tls_certificate)
    # The certificate itself is the trust anchor: the authority that signed it need not be known here.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False  # the call goes to the loopback address
    return context
