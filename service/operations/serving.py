"""The service's two processes: the API and the dispatcher. Each can be killed and started again at any time."""

from __future__ import annotations

import logging
import os
import signal

import sqlalchemy as sa
import uvicorn
from pydantic import TypeAdapter, ValidationError

from service import exit_status
from service.api.access import Tokens
from service.api.app import application
from service.api.connections import HEAD_BYTES, IDLE_S, bounded_protocol
from service.api.hosts import LOOPBACK
from service.api.views import Name
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

GRACE_S = 5
"""Seconds in which open requests may end when the API is stopped; followed logs would hold it for ever."""


def serve_api(settings: ServiceSettings) -> None:
    """Answer HTTP until stopped."""
    _mask_logs(settings)
    app = application(settings, Database(settings.database_url))
    if settings.host not in LOOPBACK and settings.tls_certificate is None:
        logging.getLogger(__name__).warning(
            "the API listens on %s without TLS: tokens can be read on the way; set tls_certificate and tls_key, or put "
            "a proxy with TLS in front",
            settings.host,
        )
    uvicorn.Server(server_config(app, settings)).run()


def server_config(app: object, settings: ServiceSettings) -> uvicorn.Config:
    """How uvicorn serves the API.

    Args:
        app: of ASGI.
        settings: of the service.
    """
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # an ASGI application
        host=settings.host,
        port=settings.port,
        http=bounded_protocol(settings.request_timeout_s, settings.max_connections),
        ws="none",
        log_level="warning",
        server_header=False,
        # Without the list, uvicorn believes X-Forwarded-For of every process on this machine.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        limit_concurrency=settings.max_connections + 1,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=GRACE_S,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )


def dispatch(settings: ServiceSettings) -> None:
    """Run jobs until told to stop. Jobs under way go on, and are found again at the next start."""
    _mask_logs(settings)
    database = Database(settings.database_url)
    store = JobStore(database)
    attempts = Attempts(store, RayJobs(settings.ray, settings.ray_token_file), settings)
    ticks = Arrivals(store, settings).tick, Retention(store, settings, forget_workflows).tick
    dispatcher = Dispatcher(database, attempts, settings, ticks)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: dispatcher.stop())
    dispatcher.run()
    end_process(exit_status.DONE)


def _mask_logs(settings: ServiceSettings) -> None:
    files = {"RAY_AUTH_TOKEN_PATH": settings.ray_token_file, "MLFLOW_TOKEN_FILE": settings.mlflow_token_file}
    mask_logs(os.environ | {name: path for name, path in files.items() if path is not None})


def admin_token(settings: ServiceSettings, owner: str, days: float | None = None) -> str:
    """A new token that may do everything.

    Args:
        settings: of the service.
        owner: of the token.
        days: until it expires; None: never.

    Raises:
        UsageError: the owner's name is not one that the API takes.
    """
    try:
        TypeAdapter(Name).validate_python(owner)
    except ValidationError as error:
        raise UsageError(
            f"owner {owner!r}: want 1 to 64 letters, digits and ._@-, the first a letter or digit"
        ) from error

    def record(connection: sa.Connection, token_id: str) -> None:
        detail = f"admin for {owner}, made in the database"
        audit.append(connection, audit.Actor(owner=owner), "token.create", token_id, detail=detail)

    database = Database(settings.database_url)
    try:
        return Tokens(database).new(owner, "admin", days, within=record)[0]
    finally:
        database.close()
