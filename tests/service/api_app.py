"""A service's API inside the test's process, and tokens for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from service.api.app import application
from service.queue.store import JobStore
from service.queue.tables import Database
from service.service_settings import Place, ServiceSettings


@dataclass(frozen=True)
class Api:
    """The API, its callers and its database."""

    http: TestClient
    settings: ServiceSettings
    lab: str
    """A folder that everybody's jobs may read and write."""
    store: JobStore
    headers: dict[str, dict[str, str]]
    """Of ada and bob, who submit, eve, who reads, and root, who may do everything."""

    def submit(self, manifest: str = "a.csv", who: str = "ada", key: str | None = None, **more: Any) -> Any:
        """A check of a manifest in the lab's folder."""
        body = {"job": {"kind": "check", "manifest": f"{self.lab}/{manifest}"}, **more}
        headers = self.headers[who] | ({"Idempotency-Key": key} if key else {})
        return self.http.post("/v1/jobs", json=body, headers=headers)


def api(folder: Path, **settings: Any) -> Api:
    """An API whose storage is this folder, and whose cluster is away."""
    lab = str(folder / "lab")
    places = (Place(prefix=lab, read=("*",), write=("*",)),)
    own = ServiceSettings(storage=str(folder / "service"), ray="http://127.0.0.1:1", **{"places": places} | settings)
    database = Database(own.database_url)
    app = application(own, database)
    scopes = {"ada": "submit", "bob": "submit", "eve": "read", "root": "admin"}
    headers = {
        owner: {"Authorization": f"Bearer {app.state.tokens.new(owner, scope)[0]}"} for owner, scope in scopes.items()
    }
    return Api(TestClient(app), own, lab, JobStore(database), headers)
