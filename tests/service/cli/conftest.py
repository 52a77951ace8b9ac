"""Fixtures of the tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cli import connect
from service.client import Client
from tests.service.api.api_app import Api, make_api


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without a client file, and an environment that names no service."""
    folder = tmp_path / "home"
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(folder))
    for name in ("MAGNET_URL", "MAGNET_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return folder


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    """An API in the test's process, which the commands call with the token of ada."""
    app = make_api(tmp_path)
    Path(app.lab).mkdir(exist_ok=True)
    (Path(app.lab) / "m.csv").write_text("slide_id,uri\na,a.tiff\n")
    secret = app.headers["ada"]["Authorization"].removeprefix("Bearer ")
    monkeypatch.setattr(
        connect, "open_client", lambda: Client("http://testserver", secret, transport=app.http._transport)
    )
    return app
