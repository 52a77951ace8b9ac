"""MLflow behind the service's tokens: a real server as a process, with requests of users, jobs and strangers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import yaml
from mlflow.server import app as flask_app
from mlflow.server import gateway_api, job_api
from mlflow.server.assistant import api as assistant

from ray_jobs.cluster.processes import answers, free_port, run_process
from ray_jobs.serving.mlflow_rules import SEARCHES, Need, classify, is_query
from service.api.tokens import Tokens
from service.queue.tables import Database
from service.settings.service import read_service_settings

ROOT = Path(__file__).resolve().parents[3]
SERVICE_TOKEN = "s" * 40
CREATE, SEARCH = "/api/2.0/mlflow/experiments/create", "/api/2.0/mlflow/experiments/search"


def list_flask_routes() -> set[tuple[str, str]]:
    """Return method and path of each route of MLflow's Flask application."""
    rules = flask_app.url_map.iter_rules()
    return {(method, rule.rule) for rule in rules for method in rule.methods or ()}


def test_no_route_that_changes_something_counts_as_reading() -> None:
    """In MLflow's table of routes, a route that is neither GET nor a listed search needs more than a user's token."""
    changing = {pair for pair in list_flask_routes() if pair[0] not in ("GET", "HEAD", "OPTIONS")}
    assert len(changing) > 150
    reading = {path for method, path in changing if classify(method, path) in (Need.READ, Need.NOTHING)}
    assert reading <= SEARCHES
    assert all(re.search(r"search|[gG]et|metrics|correlation", path.rpartition("/")[2]) for path in reading)


def test_every_allowed_search_exists() -> None:
    """A renamed route would break the user interface without an error here."""
    posts = {path for method, path in list_flask_routes() if method == "POST"}
    assert posts >= SEARCHES


@pytest.mark.parametrize(
    ("method", "path", "need"),
    [
        ("GET", "/health", Need.NOTHING),
        ("POST", "/health", Need.WRITE),
        ("GET", "/version", Need.READ),
        ("GET", "/", Need.READ),
        ("GET", "/get-artifact", Need.READ),
        ("GET", "/ajax-api/2.0/mlflow/gateway-proxy", Need.ADMIN),
        ("POST", "/gateway/proxy/x/v1/chat", Need.ADMIN),
        ("GET", "/gateway/mlflow/v1/models", Need.ADMIN),
        ("GET", "//gateway//mlflow/v1/models", Need.ADMIN),
        ("GET", "/api/3.0/mlflow/gateway/secrets/list", Need.ADMIN),
        ("POST", "/ajax-api/3.0/jobs/", Need.ADMIN),
        ("POST", "/ajax-api/3.0/jobs/search", Need.ADMIN),
        ("GET", "/api/2.0/mlflow/webhooks", Need.ADMIN),
        ("POST", "/ajax-api/3.0/mlflow/scorer/invoke", Need.ADMIN),
        ("POST", "/ajax-api/3.0/mlflow/assistant/message", Need.REFUSED),
        ("GET", "/ajax-api/3.0/mlflow/assistant/config", Need.REFUSED),
        ("POST", "/api/2.0/mlflow/runs/search/", Need.WRITE),
        ("POST", "/api/2.0/mlflow/runs/search/../delete", Need.WRITE),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/x", Need.WRITE),
        ("POST", "/graphql", Need.GRAPHQL),
        ("POST", "/v1/traces", Need.WRITE),
        ("PROPFIND", "/", Need.WRITE),
    ],
)
def test_a_route_needs_its_access(method: str, path: str, need: Need) -> None:
    assert classify(method, path) is need


def test_the_prefixes_of_mlflows_fastapi_routes_are_known() -> None:
    """Requests to a renamed prefix would count as reading."""
    routers = (job_api.job_api_router, assistant.assistant_router, gateway_api.gateway_router)
    prefixes = {router.prefix for router in routers}
    assert prefixes == {"/ajax-api/3.0/jobs", "/ajax-api/3.0/mlflow/assistant", "/gateway"}


@pytest.mark.parametrize(
    ("query", "reads"),
    [
        ("{ test(inputString: $x) { output } }", True),
        ("query A { a } query B { b }", True),
        ("mutation { testMutation(inputString: $x) { output } }", False),
        ("query A { a } mutation B { b }", False),
        ("subscription { a }", False),
        ("fragment F on X { a }", False),
        ("{", False),
        ("{a" * 20_000, False),
        (3, False),
    ],
)
def test_graphql_queries_read_and_mutations_do_not(query: object, reads: bool) -> None:
    assert is_query(json.dumps({"query": query}).encode()) is reads


def test_malformed_graphql_is_refused() -> None:
    for body in (b"", b"[]", b"{", b"[" * 100_000, b"\xff"):
        assert not is_query(body)


@dataclass(frozen=True)
class Server:
    """MLflow behind the guard, and tokens for it."""

    url: str
    reader: str
    admin: str
    revoked: str
    log: Path

    def ask(self, method: str, path: str, token: str | None = None, **options: object) -> httpx2.Response:
        """Send a request with a bearer token."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        headers |= options.pop("headers", {})  # type: ignore[arg-type]
        return httpx2.request(method, f"{self.url}{path}", headers=headers, trust_env=False, timeout=30, **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("guard"), free_port()
    (folder / "mlflow-token").write_text(SERVICE_TOKEN + "\n")
    config = folder / "service.yaml"
    values = {"storage": str(folder), "mlflow_token_file": str(folder / "mlflow-token"), "wrong_tokens_per_minute": 20}
    config.write_text(yaml.safe_dump(values))
    database = Database(read_service_settings(str(config), []).database_url)
    tokens = Tokens(database)
    (reader, _), (admin, _), (revoked, revoked_token) = (
        tokens.create("ada", "submit"),
        tokens.create("eve", "admin"),
        tokens.create("x", "admin"),
    )
    tokens.revoke(revoked_token.id)
    database.close()
    argv = [sys.executable, "-m", "ray_jobs.serving.mlflow_guard", "--config", str(config), "--port", str(port)]
    argv += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with run_process(argv, log=folder / "log", env={"PYTHONPATH": str(ROOT)}, cwd=ROOT) as process:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 200
        while not answers(f"{url}/health"):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield Server(url, reader, admin, revoked, folder / "log")


@pytest.mark.slow
class TestServer:
    """Requests to one server."""

    def test_without_a_token_nothing_but_the_liveness_probe_answers(self, server: Server) -> None:
        assert server.ask("GET", "/health").status_code == 200
        for method, path in (
            ("GET", "/"),
            ("POST", SEARCH),
            ("GET", "/version"),
            ("POST", CREATE),
            ("POST", "/graphql"),
        ):
            answer = server.ask(method, path)
            assert answer.status_code == 401, path
            assert answer.headers["WWW-Authenticate"].startswith("Basic ")

    @pytest.mark.parametrize(
        "header", ["Bearer wrong", "Bearer", "Basic !!!", "Basic dXNlcg==", "Digest x", "Bearer \xe4"]
    )
    def test_a_wrong_token_is_refused(self, server: Server, header: str) -> None:
        answer = server.ask("GET", "/", headers={"Authorization": header.encode("latin-1")})
        assert answer.status_code == 401

    def test_a_revoked_token_is_refused(self, server: Server) -> None:
        assert server.ask("GET", "/", server.revoked).status_code == 401

    def test_a_user_reads_and_does_not_write(self, server: Server) -> None:
        assert server.ask("POST", SEARCH, server.reader, json={"max_results": 5}).status_code == 200
        answer = server.ask("POST", CREATE, server.reader, json={"name": "by-user"})
        assert (answer.status_code, answer.json()["error_code"]) == (403, "PERMISSION_DENIED")
        names = [
            experiment["name"]
            for experiment in server.ask("POST", SEARCH, server.reader, json={"max_results": 5}).json()["experiments"]
        ]
        assert "by-user" not in names

    def test_a_browser_sends_the_token_as_password(self, server: Server) -> None:
        answer = httpx2.get(f"{server.url}/version", auth=("any name", server.reader), trust_env=False)
        assert answer.status_code == 200

    def test_administrators_and_the_service_write(self, server: Server) -> None:
        for name, token in (("by-admin", server.admin), ("by-service", SERVICE_TOKEN)):
            assert server.ask("POST", CREATE, token, json={"name": name}).status_code == 200

    def test_graphql_only_reads(self, server: Server) -> None:
        query = {"query": 'query { test(inputString: "a") { output } }'}
        answer = server.ask("POST", "/graphql", server.reader, json=query)
        assert answer.json()["data"] == {"test": {"output": "a"}}
        mutation = {"query": 'mutation { testMutation(inputString: "a") { output } }'}
        assert server.ask("POST", "/graphql", server.reader, json=mutation).status_code == 403
        large = {"query": query["query"] + " " * (1 << 20)}
        assert server.ask("POST", "/graphql", server.reader, json=large).status_code == 403

    def test_routes_that_start_work_are_for_administrators(self, server: Server) -> None:
        for token in (server.reader, SERVICE_TOKEN):
            assert server.ask("GET", "/gateway/mlflow/v1/models", token).status_code == 403
            assert server.ask("POST", "/ajax-api/3.0/jobs/", token, json={}).status_code == 403
        assert server.ask("GET", "/ajax-api/3.0/mlflow/assistant/config", server.admin).status_code == 403

    def test_a_page_of_another_site_cannot_use_the_browsers_password(self, server: Server) -> None:
        headers = {"Sec-Fetch-Site": "same-site"}  # another port of this machine
        answer = server.ask("POST", CREATE, server.admin, json={"name": "forged"}, headers=headers)
        assert answer.status_code == 403
        assert "another site" in answer.json()["message"]

    def test_another_host_name_is_refused(self, server: Server) -> None:
        """As from a page whose name points to this machine (DNS rebinding)."""
        answer = server.ask("GET", "/version", server.reader, headers={"Host": "evil.example"})
        assert answer.status_code == 403

    def test_mlflows_own_client_uses_the_token(self, server: Server, tmp_path: Path) -> None:
        """As in a job: a run with a metric and an artifact is written and read back."""
        code = (
            "import mlflow, pathlib; pathlib.Path('a.txt').write_text('hello');"
            "run = mlflow.start_run(); mlflow.log_metric('m', 2.0); mlflow.log_artifact('a.txt'); mlflow.end_run();"
            "text = mlflow.artifacts.load_text(f'{run.info.artifact_uri}/a.txt');"
            "print(text, mlflow.get_run(run.info.run_id).data.metrics)"
        )
        env = os.environ | {"MLFLOW_TRACKING_URI": server.url, "MLFLOW_DISABLE_TELEMETRY": "true"}
        argv = [sys.executable, "-c", code]
        done = subprocess.run(
            argv,
            env=env | {"MLFLOW_TRACKING_TOKEN": SERVICE_TOKEN},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "hello {'m': 2.0}" in done.stdout, done.stderr
        env |= {"MLFLOW_TRACKING_TOKEN": server.reader, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        refused = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "PERMISSION_DENIED" in refused.stderr

    def test_guessing_is_slowed_and_valid_tokens_still_pass(self, server: Server) -> None:
        codes = [server.ask("GET", "/", f"guess-{k}").status_code for k in range(60)]
        assert codes[-1] == 429
        assert set(codes) == {401, 429}
        assert server.ask("GET", "/version", server.reader).status_code == 200

    def test_the_log_contains_no_token(self, server: Server) -> None:
        log = server.log.read_text()
        assert not [token for token in (server.reader, server.admin, SERVICE_TOKEN) if token in log]
