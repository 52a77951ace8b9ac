"""The service's two processes: the API and the dispatcher. Each can be killed and started again at any time."""

from __future__ import annotations

import logging
import signal

import uvicorn

from service.api.access import Tokens
from service.api.app import application
from service.queue.arrivals import Arrivals
from service.queue.attempts import Attempts
from service.queue.dispatcher import Dispatcher, forget_workflows
from service.queue.ray_api import RayJobs
from service.queue.retention import Retention
from service.queue.store import JobStore
from service.queue.tables import Database
from service.service_settings import ServiceSettings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve_api(settings: ServiceSettings) -> None:
    """Answer HTTP until told to stop."""
    app = application(settings, Database(settings.database_url))
    if settings.host not in LOOPBACK:
        logging.getLogger(__name__).warning(
            "the API listens on %s without TLS: tokens can be read on the way; put a proxy with TLS in front",
            settings.host,
        )
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning", server_header=False)


def dispatch(settings: ServiceSettings) -> None:
    """Run jobs until told to stop. Jobs under way go on, and are found again at the next start."""
    database = Database(settings.database_url)
    store = JobStore(database)
    attempts = Attempts(store, RayJobs(settings.ray, settings.ray_token_file), settings)
    ticks = Arrivals(store, settings).tick, Retention(store, settings, forget_workflows).tick
    dispatcher = Dispatcher(database, attempts, settings, ticks)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: dispatcher.stop())
    dispatcher.run()


def admin_token(settings: ServiceSettings, owner: str, days: float | None = None) -> str:
    """A new token that may do everything.

    Args:
        settings: of the service.
        owner: of the token.
        days: until it expires; None: never.
    """
    database = Database(settings.database_url)
    try:
        return Tokens(database).new(owner, "admin", days)[0]
    finally:
        database.close()
