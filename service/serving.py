"""The service's two processes: the API and the dispatcher. Each can be killed and started again at any time."""

from __future__ import annotations

import logging
import os
import signal

import uvicorn

from service import exit_status
from service.api.access import Tokens
from service.api.app import application
from service.queue.arrivals import Arrivals
from service.queue.attempts import Attempts
from service.queue.dispatcher import Dispatcher, end_process, forget_workflows
from service.queue.ray_api import RayJobs
from service.queue.retention import Retention
from service.queue.secrets import mask_logs
from service.queue.store import JobStore
from service.queue.tables import Database
from service.service_settings import ServiceSettings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve_api(settings: ServiceSettings) -> None:
    """Answer HTTP until told to stop."""
    _mask_logs(settings)
    app = application(settings, Database(settings.database_url))
    if settings.host not in LOOPBACK:
        logging.getLogger(__name__).warning(
            "the API listens on %s without TLS: tokens can be read on the way; put a proxy with TLS in front",
            settings.host,
        )
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning", server_header=False)


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


def admin_token(settings: ServiceSettings, owner: str) -> str:
    """A new token that may do everything."""
    database = Database(settings.database_url)
    try:
        return Tokens(database).new(owner, "admin")[0]
    finally:
        database.close()
