"""The gate in front of the API: refused requests, and what is not read before the refusal."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.api.errors import RefusedError
from service.api.gate.body import read_body
from service.api.gate.limits import to_source
from tests.service.api.api_app import Api, make_api

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Api:
    return make_api(tmp_path_factory.mktemp("gate"), wrong_tokens_per_minute=100_000)


class Client:
    """Client that sends one ASGI request, and counts how often the application reads a part of its body."""

    def __init__(self, parts: Sequence[bytes] = (), *, stalls: bool = False) -> None:
        self.parts, self.stalls, self.num_reads, self.status = list(parts), stalls, 0, 0

    async def receive(self) -> dict[str, Any]:
        self.num_reads += 1
        if not self.parts:
            if self.stalls:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}
        body = self.parts.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(self.parts) or self.stalls}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]

    def request(self, app: Api, method: str, path: str, headers: dict[str, str]) -> int:
        """Send a request, and return the status of the response."""
        all_headers = {"host": "testserver", **headers}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in all_headers.items()],
            "client": ("192.0.2.7", 1234),
            "server": ("testserver", 80),
        }
        asyncio.run(app.http.app(scope, self.receive, self.send))  # type: ignore[arg-type]  # messages are dicts
        return self.status


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer magnet_x"}, {"Authorization": "Basic eDp5"}])
def test_no_byte_of_a_body_is_read_without_a_valid_token(app: Api, headers: dict[str, str]) -> None:
    client = Client([b"x"] * 1000)
    assert client.request(app, "POST", "/v1/jobs", headers) == 401
    assert client.num_reads == 0


def test_no_byte_of_a_body_is_read_for_another_host(app: Api) -> None:
    client = Client([b"x"] * 1000)
    assert client.request(app, "POST", "/v1/jobs", app.headers["ada"] | {"host": "evil.example"}) == 421
    assert client.num_reads == 0


def test_no_byte_of_a_body_is_read_if_its_stated_length_is_too_large(app: Api) -> None:
    client = Client([b"x"] * 1000)
    assert client.request(app, "POST", "/v1/jobs", app.headers["ada"] | {"content-length": str(1 << 30)}) == 413
    assert client.num_reads == 0


def test_no_byte_of_a_body_is_read_above_the_rate(tmp_path: Path) -> None:
    app, client = make_api(tmp_path, requests_per_minute=1), Client([b"x"] * 1000)
    for _ in range(2):
        app.http.get("/v1/whoami", headers=app.headers["ada"])
    assert client.request(app, "POST", "/v1/jobs", app.headers["ada"]) == 429
    assert client.num_reads == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/jobs", 200),
        ("POST", "/v1/jobs/x/cancel", 404),
        ("DELETE", "/v1/jobs/x", 404),
        ("GET", "/healthz", 200),
        ("POST", "/v1/nothing", 404),
        ("PUT", "/v1/jobs", 405),
    ],
)
def test_bodies_of_routes_that_take_none_are_not_read(app: Api, method: str, path: str, status: int) -> None:
    client = Client([b"x"] * 1000)
    assert client.request(app, method, path, app.headers["ada"]) == status
    assert client.num_reads == 0


def test_reading_stops_at_the_first_byte_above_the_limit(tmp_path: Path) -> None:
    app, client = make_api(tmp_path, max_body_bytes=100), Client([b"x"] * 1000)
    assert client.request(app, "POST", "/v1/jobs", app.headers["ada"]) == 413
    assert client.num_reads == 101


def test_the_body_of_a_login_has_a_smaller_limit(app: Api) -> None:
    client = Client([b"x" * 1024] * 1000)
    assert client.request(app, "POST", "/v1/login", {}) == 413
    assert client.num_reads == 129


def test_a_body_that_does_not_arrive_is_refused_with_408(tmp_path: Path) -> None:
    app, client = make_api(tmp_path, request_timeout_s=0.05), Client([b"{"], stalls=True)
    assert client.request(app, "POST", "/v1/jobs", app.headers["ada"]) == 408


def test_the_application_gets_a_body_in_one_message() -> None:
    client = Client([bytes([k % 256]) for k in range(5000)])

    async def read() -> tuple[dict[str, Any], dict[str, Any]]:
        replay = await read_body(client.receive, [], 5000, 5.0)
        return dict(await replay()), dict(await replay())

    first, then = asyncio.run(read())
    assert first == {"type": "http.request", "body": bytes(k % 256 for k in range(5000)), "more_body": False}
    assert then["type"] == "http.disconnect"
    assert client.num_reads == 5001  # each part is read once


class CountingBytes(bytes):
    """Bytes that count how often their length is read."""

    num_reads = 0

    def __len__(self) -> int:
        CountingBytes.num_reads += 1
        return super().__len__()


def test_the_work_for_each_part_of_a_body_is_constant() -> None:
    client = Client([CountingBytes(b"x") for _ in range(300)])

    async def read() -> None:
        await (await read_body(client.receive, [], 5000, 5.0))()

    CountingBytes.num_reads = 0
    asyncio.run(read())
    assert CountingBytes.num_reads <= 300


@pytest.mark.parametrize("length", ["-1", "1e3", "x", "", "²"])
def test_a_malformed_content_length_is_refused(app: Api, length: str) -> None:
    with pytest.raises(RefusedError) as raised:
        asyncio.run(read_body(Client([b"x"]).receive, [(b"content-length", length.encode())], 100, 1.0))
    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("testserver", 200),
        ("testserver:8290", 200),
        ("TESTSERVER.", 200),
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]", 200),
        ("[::1]:8290", 200),
        ("[0:0:0:0:0:0:0:1]:8290", 200),
        ("evil.example", 421),
        ("testserver.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.0.2.1", 421),
        ("[2001:db8::1]", 421),
        ("", 400),
        ("testserver:x", 400),
        ("testserver:80:80", 400),
        ("::1", 400),
        ("a@testserver", 400),
        ("test server", 400),
    ],
)
def test_only_host_names_of_the_service_are_accepted(app: Api, host: str, status: int) -> None:
    answer = app.http.get("/healthz", headers={"Host": host})
    assert answer.status_code == status
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"


def test_the_rate_counts_by_user_for_all_tokens(tmp_path: Path) -> None:
    app = make_api(tmp_path, requests_per_minute=3)
    statuses, headers = [], app.headers["ada"]
    for _ in range(7):
        answer = app.http.post("/v1/tokens/rotate", json={}, headers=headers)
        statuses.append(answer.status_code)
        if answer.status_code == 201:
            headers = {"Authorization": f"Bearer {answer.json()['secret']}"}
    assert statuses == [201] * 6 + [429]  # a burst is twice the rate


@pytest.mark.parametrize("path", ["/v1/jobs", "/healthz", "/openapi.json", "/v1/nothing", "/docs"])
@pytest.mark.parametrize("tls", [False, True])
def test_every_response_forbids_browsers_to_run_store_or_frame_it(tmp_path: Path, path: str, tls: bool) -> None:
    files = {"tls_certificate": "c.pem", "tls_key": "k.pem"} if tls else {}
    headers = make_api(tmp_path, **files).http.get(path).headers
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
    assert headers["referrer-policy"] == "no-referrer"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in policy
    assert ("strict-transport-security" in headers) == tls


def test_the_documentation_loads_nothing_from_other_servers(app: Api) -> None:
    page = app.http.get("/docs").text
    loaded = re.findall(r'(?:src|href|url)[=:] ?["\']([^"\']+)', page)
    assert {"/docs/files/swagger-ui-bundle.js", "/docs/files/swagger-ui.css", "/openapi.json"} <= set(loaded)
    assert [name for name in loaded if name.startswith(("http", "//"))] == []
    for name in loaded:
        assert app.http.get(name).status_code == 200


def test_a_service_on_all_interfaces_accepts_addresses_and_its_host_names(tmp_path: Path) -> None:
    app = make_api(tmp_path, host="0.0.0.0", hosts=("magnet.lab",))
    hosts = ("192.0.2.1:8290", "[2001:db8::1]", "magnet.lab", "evil.example")
    assert [app.http.get("/healthz", headers={"Host": host}).status_code for host in hosts] == [200, 200, 200, 421]


def test_wrong_tokens_are_limited_and_valid_ones_of_the_same_address_are_not(tmp_path: Path) -> None:
    app = make_api(tmp_path, wrong_tokens_per_minute=2)
    wrong = [app.http.get("/v1/jobs", headers={"Authorization": "Bearer magnet_x"}).status_code for _ in range(4)]
    assert wrong == [401] * 4  # a burst is twice the rate
    assert app.http.get("/v1/jobs").status_code == 429
    assert app.http.get("/v1/jobs", headers={"Authorization": "Bearer magnet_x"}).status_code == 429
    assert app.http.get("/v1/jobs", headers=app.headers["ada"]).status_code == 200
    assert app.http.get("/healthz").status_code == 200


def test_logins_count_as_requests_without_a_valid_token(tmp_path: Path) -> None:
    app = make_api(tmp_path, wrong_tokens_per_minute=1)
    statuses = [app.http.post("/v1/login", json={"id_token": "x"}).status_code for _ in range(3)]
    assert statuses == [404, 404, 429]


def test_a_network_of_ipv6_addresses_is_one_source() -> None:
    assert to_source("2001:db8::1") == to_source("2001:db8::ffff")
    assert to_source("2001:db8::1") != to_source("2001:db8:0:1::1")
    assert to_source("::ffff:192.0.2.1") == to_source("192.0.2.1")


def test_every_other_path_needs_a_token(app: Api) -> None:
    paths = ["/", "/v1/jobs", "/v1/audit", "/v1/whoami", "/redoc", "/nothing", "/healthz/", "//healthz"]
    assert {path: app.http.get(path).status_code for path in paths} == dict.fromkeys(paths, 401)


def test_ten_concurrent_submissions_with_one_key_create_one_job(app: Api) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: app.submit(key="race"), range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"job": ' * 50_000, b'{"priority": 1e999}', b'{"priority": ' + b"9" * 5000 + b"}"]
)
def test_deep_json_and_huge_numbers_are_refused(app: Api, body: bytes) -> None:
    headers = app.headers["ada"] | {"Content-Type": "application/json"}
    assert app.http.post("/v1/jobs", content=body, headers=headers).status_code in (400, 422)


def test_a_gzipped_body_is_not_unpacked(app: Api) -> None:
    headers = app.headers["ada"] | {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert app.http.post("/v1/jobs", content=b"\x1f\x8b\x08\x00", headers=headers).status_code in (400, 422)
