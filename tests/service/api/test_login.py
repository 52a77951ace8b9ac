"""Login by OpenID Connect: a provider on a loopback port signs real tokens, and forged tokens are refused."""

from __future__ import annotations

import base64
import hmac
import json
import string
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, RSAKey

from service.api import oidc
from service.settings.service import OidcSettings
from tests.service.api.api_app import Api, make_api
from tests.service.background import running

pytestmark = pytest.mark.slow

CLIENT = "magnet-cli"
RSA = RSAKey.generate_key(2048, {"kid": "first", "use": "sig", "alg": "RS256"})
EC = ECKey.generate_key("P-256", {"kid": "curve", "use": "sig", "alg": "ES256"})
OTHER = RSAKey.generate_key(2048, {"kid": "first"})


class FakeProvider:
    """An issuer with a discovery document and keys, which records what is fetched."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [RSA.as_dict(private=False), EC.as_dict(private=False)]
        self.changed_metadata: dict[str, Any] = {}
        self.redirect: str | None = None
        self.fetched: list[str] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.fetched.append(self.path)
                if provider.redirect is not None:
                    self.send_response(302)
                    self.send_header("Location", provider.redirect)
                    self.end_headers()
                    return
                answers = {"/.well-known/openid-configuration": provider.discovery(), "/keys": {"keys": provider.keys}}
                body = json.dumps(answers.get(self.path, {})).encode()
                self.send_response(200 if self.path in answers else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"

    def discovery(self) -> dict[str, Any]:
        return {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"} | self.changed_metadata

    def make_claims(self, **changed: Any) -> dict[str, Any]:
        """Return claims of a valid token, with changes; None removes a claim."""
        now = int(time.time())
        good = {"iss": self.issuer, "aud": CLIENT, "sub": "1", "exp": now + 300, "iat": now, "email": "Ada@lab.example"}
        good |= {"groups": ["readers", "staff"], "email_verified": True, "jti": uuid.uuid4().hex}
        return {name: value for name, value in (good | changed).items() if value is not None}

    def make_token(self, key: Any = RSA, algorithm: str = "RS256", kid: str | None = None, **changed: Any) -> str:
        header = {"alg": algorithm} | ({"kid": kid or key.kid} if (kid or key.kid) else {})
        return jwt.encode(header, self.make_claims(**changed), key, algorithms=[algorithm])


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    fake = FakeProvider()
    with running(fake.server):
        yield fake


@pytest.fixture
def app(tmp_path: Path, provider: FakeProvider) -> Api:
    scopes = {"readers": "read", "staff": "submit", "heads": "admin"}
    settings = OidcSettings(issuer=provider.issuer, client_id=CLIENT, scope_of_group=scopes, session_hours=2.0)
    return make_api(tmp_path, oidc=settings, wrong_tokens_per_minute=10_000)


def log_in(app: Api, token: str, **more: Any) -> Any:
    """Send an ID token to the API."""
    return app.http.post("/v1/login", json={"id_token": token, **more})


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (EC, "ES256")])
def test_a_login_returns_a_token_of_its_user(app: Api, provider: FakeProvider, key: Any, algorithm: str) -> None:
    assert app.http.get("/v1/login").json() == {"issuer": provider.issuer, "client_id": CLIENT}
    answer = log_in(app, provider.make_token(key, algorithm))
    assert answer.status_code == 201
    token = answer.json()
    assert (token["owner"], token["scope"]) == ("ada@lab.example", "submit")
    assert token["expires_s"] - token["created_s"] == pytest.approx(7200)
    who = app.http.get("/v1/whoami", headers={"Authorization": f"Bearer {token['secret']}"}).json()
    assert (who["owner"], who["groups"], who["token_id"]) == ("ada@lab.example", ["readers", "staff"], token["id"])


def test_an_id_token_is_accepted_once_in_any_spelling(app: Api, provider: FakeProvider) -> None:
    token = provider.make_token()
    head, signature = token[:-1], token[-1]
    digits = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    respelled = head + digits[digits.index(signature) ^ 1]  # only some bits of the last character count
    assert [log_in(app, text).status_code for text in (token, token, respelled)] == [201, 401, 401]
    assert log_in(app, provider.make_token()).status_code == 201


def test_a_service_without_a_provider_has_no_login(tmp_path: Path) -> None:
    app = make_api(tmp_path)
    assert app.http.get("/v1/login").status_code == 404
    assert log_in(app, "x.y.z").status_code == 404


def encode_part(values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).rstrip(b"=").decode()


def test_forged_signatures_are_refused(app: Api, provider: FakeProvider) -> None:
    good = provider.make_token()
    header, payload, signature = good.split(".")
    confused = f"{encode_part({'alg': 'HS256', 'kid': 'first'})}.{payload}"  # an HMAC whose secret is the public key
    mac = hmac.new(RSA.as_pem(private=False), confused.encode(), "sha256").digest()
    confused += f".{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    critical = {"alg": "RS256", "kid": "first", "crit": ["x"], "x": 1}
    embedded = {"alg": "RS256", "jwk": OTHER.as_dict(private=False)}
    forged = {
        "another key": provider.make_token(OTHER),
        "another key, embedded": jwt.encode(embedded, provider.make_claims(), OTHER, ["RS256"]),
        "none": f"{encode_part({'alg': 'none'})}.{payload}.",
        "None": f"{encode_part({'alg': 'NONE'})}.{payload}.",
        "none with a signature": f"{encode_part({'alg': 'none', 'kid': 'first'})}.{payload}.{signature}",
        "HS256 by the public key": confused,
        "PS256": provider.make_token(RSAKey.import_key(RSA.as_dict(private=True) | {"alg": "PS256"}), "PS256", "first"),
        "no algorithm": f"{encode_part({'kid': 'first'})}.{payload}.{signature}",
        "other claims": f"{header}.{encode_part(provider.make_claims(email='root@lab.example'))}.{signature}",
        "no signature": f"{header}.{payload}.",
        "two parts": f"{header}.{payload}",
        "no token": "x",
        "unknown key": provider.make_token(kid="unknown"),
        "key of another type": provider.make_token(EC, "ES256", "first"),
        "an access token": jwt.encode(
            {"alg": "RS256", "kid": "first", "typ": "at+jwt"}, provider.make_claims(), RSA, ["RS256"]
        ),
        "claims are a list": jws.serialize_compact({"alg": "RS256", "kid": "first"}, b"[1]", RSA, ["RS256"]),
        "deep header": f"{base64.urlsafe_b64encode(b'[' * 60_000).decode()}.{payload}.{signature}",
        "critical extension": f"{encode_part(critical)}.{payload}.{signature}",
    }
    assert log_in(app, good).status_code == 201
    assert {what: log_in(app, token).status_code for what, token in forged.items()} == dict.fromkeys(forged, 401)


def test_claims_of_another_time_client_or_issuer_are_refused(app: Api, provider: FakeProvider) -> None:
    now = int(time.time())
    wrong = {
        "expired": {"exp": now - 61},
        "no end": {"exp": None},
        "end is a text": {"exp": "9999999999"},
        "end is true": {"exp": True},
        "not yet issued": {"iat": now + 120},
        "no time of issue": {"iat": None},
        "not yet valid": {"nbf": now + 120},
        "another client": {"aud": "other"},
        "no client": {"aud": None},
        "two clients without azp": {"aud": [CLIENT, "other"]},
        "azp of another": {"aud": [CLIENT, "other"], "azp": "other"},
        "azp of another, one client": {"azp": "other"},
        "another issuer": {"iss": "https://evil.example"},
        "issuer with a slash": {"iss": provider.issuer + "/"},
        "no issuer": {"iss": None},
        "no subject": {"sub": None},
        "a nonce that was not sent": {"nonce": "n"},
    }
    statuses = {what: log_in(app, provider.make_token(**changed)).status_code for what, changed in wrong.items()}
    assert statuses == dict.fromkeys(wrong, 401)
    assert log_in(app, provider.make_token(), nonce="n").status_code == 401
    assert log_in(app, provider.make_token(nonce="m"), nonce="n").status_code == 401
    valid = [{"exp": now - 30}, {"iat": now + 30}, {"aud": [CLIENT]}, {"aud": [CLIENT, "other"], "azp": CLIENT}]
    assert [log_in(app, provider.make_token(**changed)).status_code for changed in valid] == [201] * 4
    assert log_in(app, provider.make_token(nonce="n"), nonce="n").status_code == 201


def test_users_who_may_not_use_the_service_are_refused(app: Api, provider: FakeProvider) -> None:
    wrong = {
        "no group": {"groups": None},
        "another group": {"groups": ["others"]},
        "a part of a group": {"groups": "staffers"},
        "a group in a dict": {"groups": {"staff": 1}},
        "no name": {"email": None},
        "an empty name": {"email": ""},
        "a path": {"email": "../root"},
        "a line": {"email": "ada\n"},
        "a Kelvin sign, which is a k in lower case": {"email": "\u212aate"},
        "a number": {"email": 7},
        "a long name": {"email": "a" * 65},
        "not verified": {"email_verified": False},
        "not verified, as text": {"email_verified": "false"},
    }
    statuses = {what: log_in(app, provider.make_token(**changed)).status_code for what, changed in wrong.items()}
    assert statuses == dict.fromkeys(wrong, 403)
    assert log_in(app, provider.make_token(email_verified=None)).status_code == 201
    token = log_in(app, provider.make_token(groups=["heads", "readers"])).json()
    assert token["scope"] == "admin"


def test_keys_are_cached_and_fetched_again_when_the_provider_replaces_them(
    app: Api, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        assert log_in(app, provider.make_token()).status_code == 201
    assert provider.fetched.count("/keys") == 1
    new = RSAKey.generate_key(2048, {"kid": "second"})
    provider.keys = [new.as_dict(private=False)]
    for _ in range(3):  # an unknown key does not cause a fetch each time
        assert log_in(app, provider.make_token(new)).status_code == 401
    assert provider.fetched.count("/keys") == 1
    monkeypatch.setattr(oidc, "REFETCH_INTERVAL_S", 0.0)
    assert log_in(app, provider.make_token(new)).status_code == 201
    assert provider.fetched.count("/keys") == 2
    assert log_in(app, provider.make_token()).status_code == 401  # the old key is no longer published


def test_nothing_is_fetched_from_another_host(app: Api, provider: FakeProvider) -> None:
    other = FakeProvider()
    with running(other.server):
        places = [f"{other.issuer}/keys", "file:///etc/passwd", "https://127.0.0.1/keys", "", None, 7, "http://[::1"]
        for place in places:
            provider.changed_metadata = {"jwks_uri": place}
            assert log_in(app, provider.make_token()).status_code == 503, place
        provider.changed_metadata = {"issuer": other.issuer}
        assert log_in(app, provider.make_token()).status_code == 503
        provider.changed_metadata, provider.redirect = {}, f"{other.issuer}/.well-known/openid-configuration"
        assert log_in(app, provider.make_token()).status_code == 503
        assert other.fetched == []


def test_weak_and_unfit_keys_are_not_used(app: Api, provider: FakeProvider) -> None:
    with pytest.warns(Warning, match="(?i)key"):
        weak = RSAKey.generate_key(1024, {"kid": "weak"})
    unfit = [weak.as_dict(private=False), RSA.as_dict(private=False) | {"use": "enc"}, {"kty": "RSA"}, {"kty": "x"}, 7]
    provider.keys = [*unfit, {"kty": "oct", "k": "c2VjcmV0", "kid": "first"}]  # type: ignore[list-item]  # any JSON
    assert log_in(app, provider.make_token()).status_code == 401
    assert log_in(app, provider.make_token(weak)).status_code == 401


def test_rotation_does_not_extend_a_login(app: Api, provider: FakeProvider) -> None:
    token = log_in(app, provider.make_token()).json()
    header = {"Authorization": f"Bearer {token['secret']}"}
    rotated = app.http.post("/v1/tokens/rotate", json={}, headers=header).json()
    assert rotated["expires_s"] == pytest.approx(token["expires_s"], abs=1.0)
    assert rotated["groups"] == ["readers", "staff"]


def test_a_login_ends_within_the_services_limit(tmp_path: Path, provider: FakeProvider) -> None:
    settings = OidcSettings(issuer=provider.issuer, client_id=CLIENT, scope_of_group={"staff": "submit"})
    app = make_api(tmp_path, oidc=settings, max_token_days=0.25)
    token = log_in(app, provider.make_token()).json()
    assert token["expires_s"] - token["created_s"] == pytest.approx(6 * 3600)
