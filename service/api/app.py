"""The HTTP API as an ASGI application."""

from __future__ import annotations

import importlib.metadata

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from service.api import health, jobs, problems, recurring, results, tokens
from service.api.access import Tokens
from service.api.limits import BodyLimit, Rate
from service.queue.arrivals import Arrivals
from service.queue.ray_api import RayJobs
from service.queue.store import JobStore
from service.queue.tables import Database
from service.service_settings import ServiceSettings

ABOUT = """Train, tune and run Magnifying Networks on slides in object storage. For research use only.

Send a token with each request: `Authorization: Bearer magnet_...`."""


def application(settings: ServiceSettings, database: Database) -> FastAPI:
    """The API of a service.

    Args:
        settings: of the service.
        database: the queue's.
    """
    app = FastAPI(title="MagNets", description=ABOUT, version=importlib.metadata.version("magnifying-networks"))
    store = JobStore(database)
    app.state.settings, app.state.store, app.state.tokens = settings, store, Tokens(database)
    app.state.ray = RayJobs(settings.ray, settings.ray_token_file)
    app.state.arrivals = Arrivals(store, settings)
    app.state.rate = Rate(settings.requests_per_minute)
    problems.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, refuse=_too_large)
    for part in (jobs, results, recurring, tokens, health):
        app.include_router(part.router)
    return app


async def _too_large(scope: Scope, receive: Receive, send: Send) -> None:
    answer = problems.problem(413, "the request is larger than this service takes", "send less; settings are small")
    await answer(scope, receive, send)
