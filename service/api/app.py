"""The HTTP API as an ASGI application."""

from __future__ import annotations

import importlib.metadata

from fastapi import FastAPI

from service.api import problems
from service.api.docs import add_docs
from service.api.gate.denials import Denials
from service.api.gate.limits import Streams
from service.api.gate.middleware import Gate
from service.api.manifests import Manifests
from service.api.oidc import Provider
from service.api.routes import audit, health, jobs, login, logs, models, recurring, results, tokens, whoami
from service.api.schema import describe_schema
from service.api.tokens import Tokens
from service.queue.arrivals import Arrivals
from service.queue.ray_api import RayJobs
from service.queue.store import JobStore
from service.queue.tables import Database
from service.settings.service import ServiceSettings

DESCRIPTION = """Train, tune and run Magnifying Networks on slides in object storage. For research use only.

Send a token with each request: `Authorization: Bearer magnet_...`. An error is a body of type
`application/problem+json`: `detail` says what was wrong, `to_do` what to do about it."""
ROUTE_MODULES = (jobs, logs, results, recurring, models, tokens, whoami, login, audit, health)


def create_app(settings: ServiceSettings, database: Database) -> FastAPI:
    """Return the API of a service.

    Args:
        settings: service settings.
        database: the queue's database.
    """
    version = importlib.metadata.version("magnifying-networks")
    # FastAPI's own pages load scripts from other servers; `add_docs` serves them from here.
    app = FastAPI(title="MagNets", description=DESCRIPTION, version=version, docs_url=None, redoc_url=None)
    store = JobStore(database)
    app.state.settings, app.state.store, app.state.tokens = settings, store, Tokens(database)
    app.state.ray = RayJobs(settings.ray, settings.ray_token_file)
    app.state.arrivals = Arrivals(store, settings)
    app.state.streams = Streams(settings.max_followed_per_user)
    app.state.manifests = Manifests()
    app.state.provider = None if settings.oidc is None else Provider(settings.oidc)
    problems.install_handlers(app)
    routes = [route for module in ROUTE_MODULES for route in module.router.routes]
    for module in ROUTE_MODULES:
        app.include_router(module.router)
    add_docs(app)
    describe_schema(app)
    # As middleware, so that unknown paths need a token too.
    app.add_middleware(Gate, settings=settings, tokens=app.state.tokens, routes=routes, denials=Denials(database))
    return app
