"""The API's server: slow, many and encrypted connections, and connections through a proxy."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.queue import audit
from tests.service.api.api_app import Api, make_api
from tests.service.api.api_server import read_until_closed, serving

pytestmark = pytest.mark.slow

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Api:
    return make_api(tmp_path_factory.mktemp("server"), request_timeout_s=0.5, max_connections=4)


@pytest.fixture(scope="module")
def port(app: Api) -> Iterator[int]:
    with serving(app) as port:
        yield port


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), timeout=30)


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, HEAD + b"X: "])
def test_a_connection_whose_head_never_ends_is_closed(port: int, sent: bytes) -> None:
    with connect(port) as connection:
        connection.sendall(sent)
        assert read_until_closed(connection) == b""


def test_a_head_that_arrives_byte_by_byte_gets_no_more_time(port: int) -> None:
    with connect(port) as connection:
        ended = threading.Event()

        def send_slowly() -> None:
            while not ended.is_set():
                try:
                    connection.sendall(b"x")
                except OSError:
                    return
                time.sleep(0.02)

        connection.sendall(HEAD + b"X: ")
        thread = threading.Thread(target=send_slowly)
        thread.start()
        try:
            assert read_until_closed(connection) == b""
        finally:
            ended.set()
            thread.join()


def test_the_second_request_of_a_connection_has_a_time_limit_too(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(HEAD)
        assert b"HTTP/1.1" not in read_until_closed(connection)


def test_two_requests_on_one_connection_are_answered(port: int) -> None:
    with connect(port) as connection:
        connection.sendall((HEAD + b"\r\n") * 2)
        received = b""
        while received.count(b'{"status":"alive"}') < 2:
            data = connection.recv(65536)
            assert data, received
            received += data


def test_a_body_that_is_not_read_does_not_hold_the_connection(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
        assert read_until_closed(connection).startswith(b"HTTP/1.1 401")


def test_a_body_that_never_ends_is_answered_with_408(app: Api, port: int) -> None:
    with connect(port) as connection:
        token = app.headers["ada"]["Authorization"].encode()
        head = (
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + token + b"\r\nContent-Length: 99\r\n\r\n"
        )
        connection.sendall(head + b"{")
        assert read_until_closed(connection).startswith(b"HTTP/1.1 408")


def test_a_head_that_is_too_large_is_refused(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(HEAD + b"X: " + b"x" * (40 << 10))
        assert read_until_closed(connection).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


def test_connections_are_bounded_and_freed(tmp_path: Path) -> None:
    app = make_api(tmp_path, max_connections=2)
    with serving(app) as port:
        connections = [connect(port) for _ in range(2)]
        try:
            assert httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code == 503
            connections += [connect(port) for _ in range(4)]
            assert read_until_closed(connections[-1]) == b""  # beyond twice as many, connections are closed at once
        finally:
            for connection in connections:
                connection.close()
        while httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code != 200:
            time.sleep(0.05)


def test_a_followed_log_is_no_longer_counted_after_its_client_disconnects(tmp_path: Path) -> None:
    app = make_api(tmp_path, max_followed_per_user=2)
    job_id, ada = app.submit().json()["id"], app.headers["ada"]
    with serving(app) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=ada, timeout=30) as http:

        def count_followed() -> int:
            return int(http.get("/v1/whoami").json()["followed"]["used"])

        with (
            http.stream("GET", f"/v1/jobs/{job_id}/logs?follow=true") as logs,
            http.stream("GET", f"/v1/jobs/{job_id}/events") as events,
        ):
            assert (logs.status_code, events.status_code) == (200, 200)
            assert count_followed() == 2
            for path in ("logs?follow=true", "events"):
                answer = http.get(f"/v1/jobs/{job_id}/{path}")
                assert answer.status_code == 429
                assert "follows 2 logs or events" in answer.json()["detail"]
            assert http.get(f"/v1/jobs/{job_id}/logs").status_code == 200
            other = httpx2.Headers(app.headers["root"])
            with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=other) as answer:
                assert answer.status_code == 200
        while count_followed():
            time.sleep(0.05)


def write_certificate(folder: Path) -> tuple[str, str]:
    """Write a self-signed certificate for 127.0.0.1 and its key, and return the paths of both."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return str(folder / "cert.pem"), str(folder / "key.pem")


def test_the_api_speaks_https_with_its_certificate(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    app = make_api(tmp_path, tls_certificate=cert, tls_key=key, request_timeout_s=0.5)
    trusting = ssl.create_default_context(cafile=cert)
    with serving(app) as port:
        url = f"https://127.0.0.1:{port}/v1/jobs"
        assert httpx2.get(url, verify=trusting, headers=app.headers["ada"]).status_code == 200
        with pytest.raises(httpx2.TransportError):
            httpx2.get(url.replace("https", "http"))
        with trusting.wrap_socket(connect(port), server_hostname="127.0.0.1") as slow:
            slow.sendall(HEAD)
            assert read_until_closed(slow) == b""


def test_an_ipv6_address_is_served(tmp_path: Path) -> None:
    app = make_api(tmp_path, host="::1")
    with serving(app) as port:
        assert httpx2.get(f"http://[::1]:{port}/v1/jobs", headers=app.headers["ada"]).status_code == 200


@pytest.mark.parametrize(("trusted", "address"), [((), "127.0.0.1"), (("127.0.0.1",), "192.0.2.9")])
def test_a_forwarded_address_is_accepted_from_trusted_proxies_only(
    tmp_path: Path, trusted: tuple[str, ...], address: str
) -> None:
    app = make_api(tmp_path, trusted_proxies=trusted)
    with serving(app) as port:
        headers = {"X-Forwarded-For": "203.0.113.5, 192.0.2.9"}
        assert httpx2.get(f"http://127.0.0.1:{port}/v1/jobs", headers=headers).status_code == 401
    (row,) = audit.page(app.store.database)
    assert (row.actor, row.address, row.action, row.object) == ("-", address, "request.denied", "GET /v1/jobs")
