"""The API against its OpenAPI schema: every request gets a documented response, and never a 500.

MAGNET_FUZZ_EXAMPLES=420 pytest -s tests/service/api/test_fuzz.py    sends about 10,000 requests
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from service.queue.lease import Lease
from service.settings.service import OidcSettings
from tests.service.api.api_app import Api, make_api

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
load_all_checks()

EXAMPLES = int(os.environ.get("MAGNET_FUZZ_EXAMPLES", "40"))
"""Number of requests per route."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Api:
    oidc = OidcSettings(issuer="http://127.0.0.1:1", client_id="magnet", scope_of_group={"lab": "submit"})
    limits = dict.fromkeys(("requests_per_minute", "wrong_tokens_per_minute", "max_queued_per_user"), 10**6)
    return make_api(tmp_path_factory.mktemp("api"), oidc=oidc, **limits)


@pytest.fixture(scope="module")
def schema(app: Api) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app.http.app)


@pytest.fixture(scope="module")
def count() -> Iterator[Counter[int]]:
    counter = Counter[int]()
    yield counter
    print(f"\n{sum(counter.values())} requests, by status: {dict(sorted(counter.items()))}")


def test_every_response_follows_the_schema_and_none_is_a_server_error(
    app: Api, schema: Any, count: Counter[int]
) -> None:
    job_id = app.submit().json()["id"]
    Lease(app.store.database, "dispatcher", "a dispatcher", 1000.0).take()
    app.http.post(f"/v1/jobs/{job_id}/cancel", headers=app.headers["ada"])
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 28
    for operation in operations:

        @settings(
            max_examples=EXAMPLES,
            database=None,
            derandomize=True,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given_cases(operation)
        def send(case: Any) -> None:
            if "job_id" in case.path_parameters and len(str(case.path_parameters["job_id"])) % 2:
                case.path_parameters["job_id"] = job_id
            if "follow" in (case.query or {}) or case.operation.path.endswith(("/logs", "/events")):
                case.query = {**(case.query or {}), "follow": "false"}  # following a queued job would never end
            move_into_places(case.body, app.lab)
            response = case.call(headers=make_headers(app, case))
            count[response.status_code] += 1
            case.validate_response(
                response, checks=[not_a_server_error, status_code_conformance, response_schema_conformance]
            )

        send()


def make_headers(app: Api, case: Any) -> dict[str, str]:
    """Return a header with root's token; a rotation gets a separate token, since it ends it."""
    if not case.operation.path.endswith("/rotate"):
        return app.headers["root"]
    secret, _ = app.http.app.state.tokens.create("root", "admin")  # type: ignore[attr-defined]  # the app of a TestClient
    return {"Authorization": f"Bearer {secret}"}


def move_into_places(body: Any, lab: str) -> None:
    """Move a job's paths into an allowed place: otherwise no request would pass the check of places."""
    job = body.get("job") if isinstance(body, dict) else None
    for name in ("manifest", "out", "outlines"):
        if isinstance(job, dict) and isinstance(job.get(name), str):
            job[name] = (
                f"{lab}/a.csv" if name == "manifest" else f"{lab}/{job[name]}"
            )  # a missing manifest would be refused


def given_cases(operation: Any) -> Any:
    """Return a decorator with requests of a route, both those that its schema allows and others."""
    from hypothesis import given, strategies  # noqa: PLC0415

    valid = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    return given(case=strategies.one_of(valid, wrong))
