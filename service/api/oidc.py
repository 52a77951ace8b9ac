"""Login by OpenID Connect: an ID token that the provider has signed becomes a user with groups and a scope.

The signature is checked by joserfc, the JOSE library below Authlib. Authlib's own flows are not needed: the user's
client talks to the provider, and only the ID token comes here.

Source: OpenID Connect Core 1.0, section 3.1.3.7; OpenID Connect Discovery 1.0, section 4.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, KeyBase, RSAKey
from joserfc.jwt import JWTClaimsRegistry

from service.api.access import RIGHTS, ForbiddenError
from service.errors import MagnetError
from service.settings.service import OidcSettings

ALGORITHMS = ["RS256", "ES256"]
"""Accepted signatures: by a private key that only the provider has. `none` and HS* are not."""
KEY_TYPE = {"RS256": "RSA", "ES256": "EC"}
LEEWAY_S = 60
"""Seconds by which the provider's clock may differ."""
KEYS_S, AGAIN_S = 3600.0, 30.0
"""Seconds for which keys are kept, and between two fetches because of a key that is unknown."""
ANSWER_BYTES = 1 << 20
"""Of a provider's answer."""
DEADLINE_S = 10.0
"""Seconds for a provider's answer."""
AT_ONCE = 8
"""Logins that are checked at once: a provider that does not answer must not take all threads."""
MOST_GROUPS = 500
OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
"""As `views.Name`; ASCII only, since other letters can become ASCII ones in lower case."""
_GROUP = re.compile(r"[^\x00-\x1f\x7f]{1,200}")


class LoginError(MagnetError):
    """The ID token is not valid here. To act: the user, by a new login."""


class ProviderAwayError(MagnetError):
    """The provider does not answer as it should. To act: its operator, or this service's. A retry can help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who has logged in."""

    owner: str
    groups: tuple[str, ...]
    scope: str
    digest: str
    """Of the ID token's claims, which are accepted once."""
    expires_s: float
    """When the ID token expires; seconds since 1970."""


class Provider:
    """An OpenID Connect provider.

    Args:
        settings: of it.
    """

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._lock, self._places = threading.Lock(), threading.Semaphore(AT_ONCE)
        self._keys: list[RSAKey | ECKey] = []
        self._fetched_s = -float("inf")

    def identify(self, id_token: str, nonce: str | None) -> Identity:
        """Check an ID token, and say whose it is.

        Args:
            id_token: a signed JWT.
            nonce: that the client asked the provider for; None: none.

        Raises:
            LoginError: it is not valid.
            ForbiddenError: it is valid, and its user may not use this service.
            ProviderAwayError: the provider's keys cannot be fetched.
        """
        if not self._places.acquire(blocking=False):
            raise ProviderAwayError("too many logins at once")
        try:
            claims = self._claims(id_token)
        finally:
            self._places.release()
        self._check_claims(claims, nonce)
        return self._identity(claims)

    def _claims(self, id_token: str) -> dict[str, Any]:
        """The claims of a token with a valid signature."""

        def key_of(token: Any) -> KeyBase:
            header = token.headers()
            return self._key(header.get("kid"), str(header.get("alg")))

        try:
            token = jwt.decode(id_token, key_of, algorithms=ALGORITHMS)
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise LoginError(f"the ID token is not valid: {type(error).__name__}") from error
        if str(token.header.get("typ", "JWT")).lower() != "jwt":  # access and logout tokens are signed by the same keys
            raise LoginError(f"a token of type {token.header['typ']!r} is no ID token")
        return token.claims

    def _key(self, kid: object, algorithm: str) -> RSAKey | ECKey:
        """The provider's key of this id; fetched again if it is unknown, since providers replace their keys."""
        with self._lock:
            age_s = time.monotonic() - self._fetched_s
            if age_s > KEYS_S or (age_s > AGAIN_S and not self._matching(kid, algorithm)):
                self._keys = self._fetch_keys()
                self._fetched_s = time.monotonic()
            known = self._matching(kid, algorithm)
        if len(known) != 1:
            raise LoginError("the ID token is signed by a key that the provider does not publish")
        return known[0]

    def _matching(self, kid: object, algorithm: str) -> list[RSAKey | ECKey]:
        fit = [key for key in self._keys if key.key_type == KEY_TYPE.get(algorithm)]
        return fit if kid is None else [key for key in fit if key.kid == kid]

    def _fetch_keys(self) -> list[RSAKey | ECKey]:
        issuer = self._settings.issuer
        about = _get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if about.get("issuer") != issuer:
            raise ProviderAwayError("the provider's discovery document names another issuer than the settings")
        uri = about.get("jwks_uri")
        if not isinstance(uri, str) or not _same_host(uri, issuer):
            raise ProviderAwayError("the provider's keys lie on another host than the issuer; they are not fetched")
        keys = _get(uri).get("keys")
        return [key for values in (keys if isinstance(keys, list) else []) if (key := _verification_key(values))]

    def _check_claims(self, claims: Mapping[str, Any], nonce: str | None) -> None:
        """Issuer, audience and times. Raises `LoginError`."""
        client_id = self._settings.client_id
        registry = JWTClaimsRegistry(
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self._settings.issuer},
            aud={"essential": True, "value": client_id},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
        )
        try:
            registry.validate(dict(claims))
        except (JoseError, ValueError, TypeError) as error:
            raise LoginError(f"the ID token is not valid here: {error}") from error
        if not all(_is_time(claims[name]) for name in ("exp", "iat")):
            raise LoginError("the ID token is not valid here: exp and iat must be times")
        audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        if claims.get("azp", client_id if len(audiences) == 1 else None) != client_id:
            raise LoginError("the ID token was issued to another client (azp)")
        if claims.get("nonce") != nonce:
            raise LoginError("the nonce is not the one of this login")

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        """User, groups and scope. Raises `ForbiddenError`."""
        name = claims.get(self._settings.owner_claim)
        if not isinstance(name, str) or not OWNER.fullmatch(name):
            raise ForbiddenError(f"the claim {self._settings.owner_claim} is no name that this service takes")
        if claims.get("email_verified", True) not in (True, "true"):
            raise ForbiddenError("the provider has not verified this user's email address")
        listed = claims.get(self._settings.groups_claim, [])
        listed = [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []
        groups = [one for one in listed[:MOST_GROUPS] if isinstance(one, str) and _GROUP.fullmatch(one)]
        scopes = [scope for group, scope in self._settings.scope_of_group.items() if group in groups]
        if not scopes:
            raise ForbiddenError("none of this user's groups may use this service (scope_of_group)")
        scope = max(scopes, key=RIGHTS.__getitem__)
        # Of the claims, not of the text: its last characters can be written in several ways.
        digest = hashlib.sha256(json.dumps(claims, sort_keys=True).encode()).hexdigest()
        own_groups, expires_s = tuple(sorted(set(groups))), float(claims["exp"])
        return Identity(owner=name.lower(), groups=own_groups, scope=scope, digest=digest, expires_s=expires_s)


def _verification_key(values: Any) -> RSAKey | ECKey | None:
    """A published key that may verify signatures; None: it is for something else, or weak."""
    if (
        not isinstance(values, dict)
        or values.get("use", "sig") != "sig"
        or values.get("alg", "RS256") not in ALGORITHMS
    ):
        return None
    strong = values.get("kty") == "RSA" and isinstance(values.get("n"), str) and len(values["n"]) * 6 >= 2048
    if not strong and (values.get("kty"), values.get("crv")) != ("EC", "P-256"):
        return None
    try:
        key = JWKRegistry.import_key(values)
    except (JoseError, ValueError, TypeError):
        return None
    return key if isinstance(key, RSAKey | ECKey) else None


def _get(url: str) -> dict[str, Any]:
    """A JSON object from the provider. No redirects, no more than `ANSWER_BYTES` or `DEADLINE_S`."""
    deadline, body = time.monotonic() + DEADLINE_S, bytearray()
    try:
        with httpx2.stream("GET", url, timeout=5.0, follow_redirects=False, trust_env=False) as reply:
            for piece in reply.iter_raw():
                body += piece
                if len(body) > ANSWER_BYTES or time.monotonic() > deadline:
                    raise ProviderAwayError(f"the provider's answer to {url} is too long or too slow")
        answer = json.loads(body)
    except (httpx2.TransportError, httpx2.InvalidURL, ValueError, RecursionError) as error:
        raise ProviderAwayError(f"the provider does not answer at {url}: {type(error).__name__}") from error
    if reply.status_code != 200 or not isinstance(answer, dict):
        raise ProviderAwayError(f"the provider answered {reply.status_code} at {url}")
    return answer


def _same_host(url: str, other: str) -> bool:
    """Whether scheme, host and port are the same."""
    try:
        return urlsplit(url)[:2] == urlsplit(other)[:2]
    except ValueError:
        return False


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
