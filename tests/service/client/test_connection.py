"""Requests of the client: repeated, past proxies, over IPv6, encrypted."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.client import Client, ServiceError
from service.client.connection import Connection, is_loopback
from service.errors import UsageError
from tests.service.cli.http_server import Reply, Route, serving

ALIVE: dict[str, Route] = {"GET /healthz": Reply({"status": "alive"})}


def reply_in_turn(*replies: Reply) -> Route:
    """Return a route that gives one reply after the other, and then always the last one."""
    remaining = list(replies)
    return lambda _: remaining.pop(0) if len(remaining) > 1 else remaining[0]


def test_a_request_above_the_rate_is_repeated_after_the_stated_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("service.client.connection.time.sleep", waits.append)
    for once in (False, True):
        with serving({}) as server:
            server.routes["POST /x"] = reply_in_turn(
                Reply({"detail": "too many"}, 429, {"Retry-After": "7"}), Reply({"done": True})
            )
            assert Connection(server.url, None).call("POST", "/x", once=once).json() == {"done": True}
            assert len(server.requests) == 2
    assert waits == [7.0, 7.0]


def test_a_request_that_may_have_been_executed_is_not_repeated() -> None:
    with serving({"POST /x": Reply({"detail": "unavailable"}, 503)}) as server:
        with pytest.raises(ServiceError, match="unavailable"):
            Connection(server.url, None).call("POST", "/x", once=True)
        assert len(server.requests) == 1


def test_an_outage_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.connection.time.sleep", lambda _: None)
    reports: list[str] = []
    unavailable = Reply({"detail": "the database is unavailable"}, 503)
    with serving({"GET /x": reply_in_turn(unavailable, unavailable, unavailable, Reply({}))}) as server:
        Connection(server.url, None, report=reports.append).call("GET", "/x")
    assert reports == ["the database is unavailable; trying again"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_proxy_is_used_for_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({}) as proxy, serving(ALIVE, host=host) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        with Client(server.url, None) as client:
            client.alive()
        assert (len(server.requests), proxy.requests) == (1, [])


def test_a_proxy_is_used_for_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"GET /healthz": Reply({"status": "alive"})}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with Client("http://magnet.invalid:8290", None) as client:
            client.alive()
        assert [request.headers["Host"] for request in proxy.requests] == ["magnet.invalid:8290"]


@pytest.mark.parametrize("url", ["localhost:8290", "magnet.lab", "ftp://lab", "http://", "http://lab:x", ""])
def test_a_malformed_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="MAGNET_URL"):
        Client(url, None)


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("http://127.0.0.1:8290", True),
        ("http://[::1]:8290", True),
        ("https://localhost", True),
        ("http://127.0.0.1.example.org", False),
        ("http://localhost.example.org", False),
        ("http://10.0.0.1", False),
    ],
)
def test_loopback_addresses_are_recognised(url: str, is_local: bool) -> None:
    assert is_loopback(url) == is_local


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 of an unknown authority, and a server's context with it."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    usage = x509.BasicConstraints(ca=True, path_length=None)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    signed = builder.add_extension(names, False).add_extension(usage, True).sign(key, hashes.SHA256())
    file, key_file = tmp_path / "ca.pem", tmp_path / "key.pem"
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return file, context


def test_a_private_certificate_authority_is_trusted_only_through_ssl_cert_file(
    certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, context = certificate
    with serving(ALIVE, context=context) as server:
        with Client(server.url, "magnet_secret") as client, pytest.raises(ServiceError, match="SSL_CERT_FILE"):
            client.alive()
        assert server.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        with Client(server.url, "magnet_secret") as client:
            client.alive()


def test_a_refusal_of_another_server_names_the_address() -> None:
    with serving({"GET /v1/jobs": Reply(b"<html>login</html>", 404)}) as server, Client(server.url, None) as client:
        with pytest.raises(ServiceError, match="MAGNET_URL"):
            client.jobs()
        server.routes["GET /v1/jobs"] = Reply(b"", 302, {"Location": "https://elsewhere.example"})
        with pytest.raises(ServiceError, match=r"302: https://elsewhere\.example"):
            client.jobs()


def test_slide_ids_cannot_change_the_path_of_a_request() -> None:
    with serving({}) as server, Client(server.url, None) as client:
        with pytest.raises(ServiceError):
            client.slide("check-1", "../../v1/tokens?x=1#y")
        assert [request.path for request in server.requests] == [
            "/v1/jobs/check-1/slides/..%2F..%2Fv1%2Ftokens%3Fx%3D1%23y/picture"
        ]


@pytest.mark.parametrize("body", [b"<html>log in to the network</html>", b"[]", b"{}", b"null"])
def test_a_response_of_another_server_is_a_service_error(body: bytes) -> None:
    paths = ("GET /healthz", "GET /v1/jobs", "GET /v1/jobs/j", "GET /v1/whoami", "GET /v1/login")
    with serving({path: Reply(body) for path in paths}) as server, Client(server.url, None) as client:
        for call in (client.alive, client.jobs, lambda: client.job("j"), client.whoami, client.login_offer):
            with pytest.raises(ServiceError, match="cannot read"):
                call()


def test_a_list_of_another_server_is_a_service_error() -> None:
    routes: dict[str, Route] = {"GET /v1/tokens": Reply([{"x": 1}]), "GET /v1/recurring": Reply(b"<html>")}
    with serving(routes) as server, Client(server.url, None) as client:
        for call in (client.tokens, client.recurring):
            with pytest.raises(ServiceError, match="cannot read"):
                call()
