"""The HTTP API as an ASGI application."""

from __future__ import annotations

import importlib.metadata

from fastapi import FastAPI

from service.api import problems
from service.api.access import Tokens
from service.api.denials import Denials
from service.api.docs import add_docs
from service.api.gate import Gate
from service.api.limits import Followed
from service.api.manifests import Manifests
from service.api.oidc import Provider
from service.api.routes import audit, health, jobs, login, logs, models, recurring, results, tokens, whoami
from service.queue.arrivals import Arrivals
from service.queue.ray_api import RayJobs
from service.queue.store import JobStore
from service.queue.tables import Database
from service.settings.service import ServiceSettings

ABOUT = """Train, tune and run Magnifying Networks on slides in object storage. For research use only.

Send a token with each request: `Authorization: Bearer magnet_...`."""
PARTS = (jobs, logs, results, recurring, models, tokens, whoami, login, audit, health)


def application(settings: ServiceSettings, database: Database) -> FastAPI:
    """The API of a service.

    Args:
        settings: of the service.
        database: the queue's.
    """
    version = importlib.metadata.version("magnifying-networks")
    app = FastAPI(title="MagNets", description=ABOUT, version=version, docs_url=None, redoc_url=None)
    store = JobStore(database)
    app.state.settings, app.state.store, app.state.tokens = settings, store, Tokens(database)
    app.state.ray = RayJobs(settings.ray, settings.ray_token_file)
    app.state.arrivals = Arrivals(store, settings)
    app.state.followed = Followed(settings.max_followed_per_user)
    app.state.manifests = Manifests()
    app.state.provider = None if settings.oidc is None else Provider(settings.oidc)
    problems.install(app)
    routes = [route for part in PARTS for route in part.router.routes]
    for part in PARTS:
        app.include_router(part.router)
    add_docs(app)
    app.add_middleware(Gate, settings=settings, tokens=app.state.tokens, routes=routes, denials=Denials(database))
    return app
