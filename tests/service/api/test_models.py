"""Aliases of models: who may set them, and how the API calls MLflow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest

from ray_jobs.cluster.processes import free_port
from service.queue import audit
from tests.service.api.api_app import Api, make_api
from tests.service.background import running

pytestmark = pytest.mark.slow

TOKEN = "secret-of-mlflow"


class FakeMlflow:
    """The three routes that the API calls, as MLflow 3 implements them, with a token."""

    def __init__(self) -> None:
        self.aliases: dict[str, dict[str, str]] = {"magnet": {"challenger": "3", "champion": "1"}}
        self.versions = {"magnet": {"1", "2", "3"}}
        mlflow = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                self.reply(*mlflow.read(url.path, dict(parse_qsl(url.query))))

            def do_POST(self) -> None:
                values = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                mlflow.aliases[values["name"]][values["alias"]] = values["version"]
                self.reply(200, {})

            def reply(self, status: int, answer: dict[str, Any]) -> None:
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    status, answer = 401, {}
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def read(self, path: str, params: dict[str, str]) -> tuple[int, dict[str, Any]]:
        name = params["name"]
        if name not in self.versions:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
        if path.endswith("model-versions/get"):
            if params["version"] not in self.versions[name]:
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
            return 200, {"model_version": {"version": params["version"]}}
        version = self.aliases[name].get(params["alias"])
        if version is None:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE"}
        return 200, {"model_version": {"version": version}}


@pytest.fixture
def mlflow() -> Iterator[FakeMlflow]:
    fake = FakeMlflow()
    with running(fake.server):
        yield fake


@pytest.fixture
def app(tmp_path: Path, mlflow: FakeMlflow) -> Api:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return make_api(tmp_path, mlflow=mlflow.url, mlflow_token_file=str(tmp_path / "token"))


def promote(app: Api, model: str, who: str = "pia", **more: str) -> Any:
    return app.http.post("/v1/models/promote", json={"model": model, **more}, headers=app.headers[who])


def test_a_model_becomes_the_champion(app: Api, mlflow: FakeMlflow) -> None:
    answer = promote(app, "models:/magnet@challenger")
    assert answer.json() == {"name": "magnet", "alias": "champion", "version": "3", "earlier": "1"}
    assert mlflow.aliases["magnet"]["champion"] == "3"
    answer = promote(app, "models:/magnet/2", alias="candidate")
    assert answer.json() == {"name": "magnet", "alias": "candidate", "version": "2", "earlier": None}
    outcomes = [(row.actor, row.action, row.outcome) for row in audit.rows(app.store.database)]
    assert outcomes == [("pia", "model.promote", "asked"), ("pia", "model.promote", "ok")] * 2


@pytest.mark.parametrize(
    ("model", "more", "status"),
    [
        ("models:/magnet/9", {}, 404),
        ("models:/magnet@nobody", {}, 404),
        ("models:/other/1", {}, 404),
        ("models:/magnet/latest", {}, 422),
        ("models:/../../x/1", {}, 422),
        ("runs:/0/model", {}, 422),
        ("models:/magnet/1", {"alias": "latest"}, 422),
        ("models:/magnet/1", {"alias": "v1"}, 422),
        ("models:/magnet/1", {"alias": "a b"}, 422),
    ],
)
def test_a_missing_or_malformed_model_is_refused(
    app: Api, mlflow: FakeMlflow, model: str, more: dict[str, str], status: int
) -> None:
    before = json.dumps(mlflow.aliases)
    assert promote(app, model, **more).status_code == status
    assert json.dumps(mlflow.aliases) == before


@pytest.mark.parametrize(("who", "status"), [("eve", 403), ("ada", 403), ("pia", 200), ("root", 200)])
def test_promotion_needs_its_scope(app: Api, who: str, status: int) -> None:
    answer = promote(app, "models:/magnet@challenger", who)
    assert answer.status_code == status
    if status == 403:
        assert "needs the scope promote" in answer.json()["detail"]


def test_an_unreachable_or_refusing_mlflow_is_reported_with_503(app: Api, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wrong")
    assert promote(app, "models:/magnet@challenger").status_code == 503
    (tmp_path / "token").unlink()
    assert promote(app, "models:/magnet@challenger").status_code == 503
    (tmp_path / "other").mkdir()
    unreachable = make_api(tmp_path / "other", mlflow="http://127.0.0.1:1")
    assert promote(unreachable, "models:/magnet@challenger").status_code == 503


def test_promotion_without_an_mlflow_server_is_refused(tmp_path: Path) -> None:
    answer = promote(make_api(tmp_path), "models:/magnet@challenger")
    assert (answer.status_code, "no MLflow server" in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize("kind", ["train", "tune"])
@pytest.mark.parametrize(
    ("alias", "who", "status"), [("champion", "ada", 403), ("challenger", "ada", 201), ("champion", "pia", 201)]
)
def test_a_training_names_its_model_challenger_unless_the_token_may_promote(
    app: Api, kind: str, alias: str, who: str, status: int
) -> None:
    job = {"kind": kind, "manifest": f"{app.lab}/a.csv", "settings": {"alias": alias}}
    answer = app.http.post("/v1/jobs", json={"job": job}, headers=app.headers[who])
    assert answer.status_code == status
    schedule = {"what": "schedule", "cron": "0 2 * * *", "job": job}
    assert app.http.post("/v1/recurring", json=schedule, headers=app.headers[who]).status_code == status
    if status == 403:
        assert "promote" in answer.json()["detail"]


@pytest.mark.slow
def test_a_real_mlflow_server_sets_the_alias(tmp_path: Path) -> None:
    port = free_port()
    store = f"sqlite:///{tmp_path}/mlflow.db"
    argv = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", store]
    command = [sys.executable, "-m", "mlflow", *argv, "--artifacts-destination", str(tmp_path / "artifacts")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _answers(f"{url}/health"):
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.2)
        with httpx2.Client(base_url=f"{url}/api/2.0/mlflow", timeout=60) as http:
            assert http.post("/registered-models/create", json={"name": "magnet"}).status_code == 200
            for _ in range(2):
                response = http.post("/model-versions/create", json={"name": "magnet", "source": "s3://bucket/model"})
                assert response.status_code == 200, response.text
        app = make_api(tmp_path, mlflow=url)
        assert promote(app, "models:/magnet/1").json()["earlier"] is None
        assert promote(app, "models:/magnet@nobody").status_code == 404
        assert promote(app, "models:/other/1").status_code == 404
        assert promote(app, "models:/magnet/9").status_code == 404
        answer = promote(app, "models:/magnet/2")
        assert answer.json() == {"name": "magnet", "alias": "champion", "version": "2", "earlier": "1"}
        assert promote(app, "models:/magnet@champion", alias="best").json()["version"] == "2"
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the server has worker processes
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False
