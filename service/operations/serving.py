"""The service's two processes: the API and the dispatcher. Each can be killed and started again at any time."""

from __future__ import annotations

import logging
import os
import signal

import sqlalchemy as sa
import uvicorn
from pydantic import TypeAdapter, ValidationError

from service import exit_status
from service.api.app import create_app
from service.api.gate.connections import HEAD_BYTES, IDLE_S, make_bounded_protocol
from service.api.gate.hosts import LOOPBACK
from service.api.request_bodies import Name
from service.api.tokens import Tokens
from service.errors import UsageError
from service.queue import audit
from service.queue.arrivals import Arrivals
from service.queue.attempts import Attempts
from service.queue.dispatcher import Dispatcher, end_process, forget_workflows
from service.queue.ray_api import RayJobs
from service.queue.retention import Retention
from service.queue.store import JobStore
from service.queue.tables import Database
from service.settings.service import ServiceSettings
from service.supervisor.secrets import mask_logs

log = logging.getLogger(__name__)

GRACE_S = 5
"""Seconds that open requests have to end when the API stops; followed logs would otherwise keep it running."""


def serve_api(settings: ServiceSettings) -> None:
    """Serve the HTTP API until the process is stopped."""
    _mask_logs(settings)
    app = create_app(settings, Database(settings.database_url))
    if settings.host not in LOOPBACK and settings.tls_certificate is None:
        log.warning(
            "the API listens on %s without TLS, so tokens can be read on the network; set tls_certificate and tls_key, "
            "or put a proxy with TLS in front of it",
            settings.host,
        )
    uvicorn.Server(make_server_config(app, settings)).run()


def make_server_config(app: object, settings: ServiceSettings) -> uvicorn.Config:
    """Return uvicorn's configuration for the API.

    Args:
        app: the ASGI application.
        settings: service settings.
    """
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # an ASGI application
        host=settings.host,
        port=settings.port,
        http=make_bounded_protocol(settings.request_timeout_s, settings.max_connections),
        ws="none",
        log_level="warning",
        server_header=False,
        # Without the list, uvicorn trusts X-Forwarded-For from every process on this machine.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        # Uvicorn counts the connection that it checks.
        limit_concurrency=settings.max_connections + 1,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=GRACE_S,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )


def run_dispatcher(settings: ServiceSettings) -> None:
    """Run the queue's jobs until a signal stops the process.

    Jobs that run at that moment continue; the next dispatcher finds them.
    """
    _mask_logs(settings)
    database = Database(settings.database_url)
    store = JobStore(database)
    attempts = Attempts(store, RayJobs(settings.ray, settings.ray_token_file), settings)
    ticks = Arrivals(store, settings).tick, Retention(store, settings, forget_workflows).tick
    dispatcher = Dispatcher(database, attempts, settings, ticks)
    for number in (signal.SIGTERM, signal.SIGINT):
        # An orderly stop is recorded, and does not count as a crash of the dispatcher.
        signal.signal(number, lambda *_: dispatcher.stop())
    dispatcher.run()
    end_process(exit_status.DONE)


def create_admin_token(settings: ServiceSettings, owner: str, days: float | None = None) -> str:
    """Create an administrator's token in the database.

    The API cannot create the first token, since a request for it would need a token.

    Args:
        settings: service settings.
        owner: user who owns the token.
        days: lifetime in days; None: the token never expires.

    Returns:
        The secret.

    Raises:
        UsageError: the owner's name is not valid.
    """
    try:
        TypeAdapter(Name).validate_python(owner)
    except ValidationError as error:
        raise UsageError(
            f"owner {owner!r}: must be 1 to 64 letters, digits and ._@-, and start with a letter or digit"
        ) from error

    def record(connection: sa.Connection, token_id: str) -> None:
        detail = f"admin for {owner}, made in the database"
        audit.append(connection, audit.Actor(owner=owner), "token.create", token_id, detail=detail)

    database = Database(settings.database_url)
    try:
        return Tokens(database).create(owner, "admin", days, within=record)[0]
    finally:
        database.close()


def _mask_logs(settings: ServiceSettings) -> None:
    """Mask the service's secrets in everything that this process logs."""
    files = {"RAY_AUTH_TOKEN_PATH": settings.ray_token_file, "MLFLOW_TOKEN_FILE": settings.mlflow_token_file}
    mask_logs(os.environ | {name: path for name, path in files.items() if path is not None})
