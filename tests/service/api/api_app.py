"""A service's API in the test's process, and tokens for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from service.api.app import create_app
from service.queue.store import JobStore
from service.queue.tables import Database
from service.settings.service import Place, ServiceSettings

SCOPES = {"ada": "submit", "bob": "submit", "eve": "read", "pia": "promote", "root": "admin"}
"""Scope of each user's token."""


@dataclass(frozen=True)
class Api:
    """The API, its users and its database."""

    http: TestClient
    settings: ServiceSettings
    lab: str
    """A folder that all users' jobs may read and write."""
    store: JobStore
    headers: dict[str, dict[str, str]]
    """Headers with the token of each user in `SCOPES`."""

    def submit(self, manifest: str = "a.csv", who: str = "ada", key: str | None = None, **more: Any) -> Any:
        """Submit a check of a manifest in the lab's folder, which is created if it is missing."""
        path = Path(self.lab) / manifest
        if len(path.name) < 200 and path.parent == Path(self.lab):
            path.touch()
        body = {"job": {"kind": "check", "manifest": f"{self.lab}/{manifest}"}, **more}
        headers = self.headers[who] | ({"Idempotency-Key": key} if key else {})
        return self.http.post("/v1/jobs", json=body, headers=headers)


def make_api(folder: Path, **settings: Any) -> Api:
    """Return an API whose storage is in a folder, and whose cluster is unreachable."""
    lab = folder / "lab"
    lab.mkdir(exist_ok=True)
    for name in ("a.csv", "m.csv"):
        (lab / name).touch()
    places = (Place(prefix=str(lab), read=("*",), write=("*",)),)
    defaults = {"places": places, "hosts": ("testserver",), "ray": "http://127.0.0.1:1"}
    service_settings = ServiceSettings(storage=str(folder / "service"), **defaults | settings)
    database = Database(service_settings.database_url)
    app = create_app(service_settings, database)
    secrets = {owner: app.state.tokens.create(owner, scope)[0] for owner, scope in SCOPES.items()}
    headers = {owner: {"Authorization": f"Bearer {secret}"} for owner, secret in secrets.items()}
    return Api(TestClient(app), service_settings, str(lab), JobStore(database), headers)
