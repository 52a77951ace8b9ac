"""Login by OpenID Connect: an ID token that the provider has signed becomes a user with groups and a scope.

The library joserfc, on which Authlib is built, checks the signature. Authlib's own flows are not needed: the user's
client talks to the provider, and this service receives only the ID token.

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

from service.api.access import RIGHTS
from service.api.errors import ForbiddenError, LoginError, ProviderUnavailableError
from service.settings.service import OidcSettings

ALGORITHMS = ["RS256", "ES256"]
"""Accepted signatures, made with a private key that only the provider has. `none` and HS* are not accepted."""
KEY_TYPE = {"RS256": "RSA", "ES256": "EC"}
"""Key type of each algorithm: a key must not be used with an algorithm of another type."""
LEEWAY_S = 60
"""Seconds by which the provider's clock may differ from this machine's."""
KEYS_MAX_AGE_S, REFETCH_INTERVAL_S = 3600.0, 30.0
"""Seconds for which keys are kept, and between two fetches because of an unknown key."""
MAX_RESPONSE_BYTES = 1 << 20
"""Maximum size of a provider's response in bytes."""
DEADLINE_S = 10.0
"""Maximum seconds for a provider's response."""
MAX_LOGINS = 8
"""Maximum number of logins checked at once: a silent provider must not take all threads of the API."""
MAX_GROUPS = 500
"""Maximum number of groups that are read from an ID token."""
MIN_RSA_BITS = 2048
"""Minimum length of an RSA key in bits."""
OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
"""Form of a user name, as `request_bodies.Name`. ASCII only, since some other letters become ASCII in lower case."""
_GROUP = re.compile(r"[^\x00-\x1f\x7f]{1,200}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """A user who has logged in."""

    owner: str
    """User name."""
    groups: tuple[str, ...]
    """Groups that the ID token names, sorted."""
    scope: str
    """Widest scope that the settings give these groups."""
    digest: str
    """SHA-256 of the ID token's claims, which are accepted once."""
    expires_s: float
    """Time at which the ID token expires, in seconds since 1970."""


class Provider:
    """An OpenID Connect provider.

    Args:
        settings: settings of the provider.
    """

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._lock, self._slots = threading.Lock(), threading.Semaphore(MAX_LOGINS)
        self._keys: list[RSAKey | ECKey] = []
        self._fetched_s = -float("inf")

    def identify(self, id_token: str, nonce: str | None) -> Identity:
        """Check an ID token, and return its user.

        Args:
            id_token: a signed JWT.
            nonce: the nonce that the client sent to the provider; None: it sent none.

        Raises:
            LoginError: the token is not valid.
            ForbiddenError: the token is valid, but its user may not use this service.
            ProviderUnavailableError: the provider's keys cannot be fetched, or too many logins run at once.
        """
        if not self._slots.acquire(blocking=False):
            raise ProviderUnavailableError("too many logins at once")
        try:
            claims = self._verify(id_token)
        finally:
            self._slots.release()
        self._check_claims(claims, nonce)
        return self._to_identity(claims)

    def _verify(self, id_token: str) -> dict[str, Any]:
        """Return the claims of a token with a valid signature. Raises `LoginError`."""

        def select_key(token: Any) -> KeyBase:
            header = token.headers()
            return self._get_key(header.get("kid"), str(header.get("alg")))

        try:
            token = jwt.decode(id_token, select_key, algorithms=ALGORITHMS)
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise LoginError(f"the ID token is not valid: {type(error).__name__}") from error
        # Providers sign access tokens and logout tokens with the same keys; only the type tells them apart.
        if str(token.header.get("typ", "JWT")).lower() != "jwt":
            raise LoginError(f"a token of type {token.header['typ']!r} is not an ID token")
        return token.claims

    def _get_key(self, kid: object, algorithm: str) -> RSAKey | ECKey:
        """Return the provider's key with an ID, fetching the keys again if it is unknown. Raises `LoginError`."""
        with self._lock:
            age_s = time.monotonic() - self._fetched_s
            # Providers replace their keys. The interval keeps forged key IDs from causing a fetch each.
            if age_s > KEYS_MAX_AGE_S or (age_s > REFETCH_INTERVAL_S and not self._match_keys(kid, algorithm)):
                self._keys = self._fetch_keys()
                self._fetched_s = time.monotonic()
            keys = self._match_keys(kid, algorithm)
        if len(keys) != 1:
            raise LoginError("the ID token is signed with a key that the provider does not publish")
        return keys[0]

    def _match_keys(self, kid: object, algorithm: str) -> list[RSAKey | ECKey]:
        keys = [key for key in self._keys if key.key_type == KEY_TYPE.get(algorithm)]
        return keys if kid is None else [key for key in keys if key.kid == kid]

    def _fetch_keys(self) -> list[RSAKey | ECKey]:
        """Fetch the provider's public keys. Raises `ProviderUnavailableError`."""
        issuer = self._settings.issuer
        metadata = _get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if metadata.get("issuer") != issuer:
            raise ProviderUnavailableError("the provider's discovery document names another issuer than the settings")
        uri = metadata.get("jwks_uri")
        if not isinstance(uri, str) or not _same_host(uri, issuer):
            # The URL comes from the network: a fetch from any host could reach internal servers.
            raise ProviderUnavailableError(
                "the provider's keys are on another host than the issuer; they are not fetched"
            )
        keys = _get(uri).get("keys")
        return [key for values in (keys if isinstance(keys, list) else []) if (key := _to_verification_key(values))]

    def _check_claims(self, claims: Mapping[str, Any], nonce: str | None) -> None:
        """Check issuer, audience, times and nonce. Raises `LoginError`."""
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
            raise LoginError("the ID token is not valid here: exp and iat must be numbers of seconds")
        audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        # With several audiences, azp must name the client that the token was issued to.
        if claims.get("azp", client_id if len(audiences) == 1 else None) != client_id:
            raise LoginError("the ID token was issued to another client (azp)")
        if claims.get("nonce") != nonce:
            raise LoginError("the nonce of the ID token is not the nonce of this login")

    def _to_identity(self, claims: Mapping[str, Any]) -> Identity:
        """Return the user, the groups and the scope that claims name. Raises `ForbiddenError`."""
        name = claims.get(self._settings.owner_claim)
        if not isinstance(name, str) or not OWNER.fullmatch(name):
            raise ForbiddenError(f"the claim {self._settings.owner_claim} is not a valid user name of this service")
        # A user may have entered any address at the provider; only a verified one identifies the user.
        if claims.get("email_verified", True) not in (True, "true"):
            raise ForbiddenError("the provider has not verified this user's email address")
        listed = claims.get(self._settings.groups_claim, [])
        listed = [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []
        groups = [group for group in listed[:MAX_GROUPS] if isinstance(group, str) and _GROUP.fullmatch(group)]
        scopes = [scope for group, scope in self._settings.scope_of_group.items() if group in groups]
        if not scopes:
            raise ForbiddenError("none of this user's groups may use this service (scope_of_group)")
        scope = max(scopes, key=RIGHTS.__getitem__)
        # The digest of the claims, not of the text: the last character of the signature has several spellings.
        digest = hashlib.sha256(json.dumps(claims, sort_keys=True).encode()).hexdigest()
        unique_groups, expires_s = tuple(sorted(set(groups))), float(claims["exp"])
        # Providers spell addresses in upper and lower case, but a user must have one name here.
        return Identity(owner=name.lower(), groups=unique_groups, scope=scope, digest=digest, expires_s=expires_s)


def _to_verification_key(values: Any) -> RSAKey | ECKey | None:
    """Return a published key that may verify signatures; None: it has another purpose, or is too weak."""
    if (
        not isinstance(values, dict)
        or values.get("use", "sig") != "sig"
        or values.get("alg", "RS256") not in ALGORITHMS
    ):
        return None
    # Each character of the modulus in base64 holds six bits.
    is_strong = values.get("kty") == "RSA" and isinstance(values.get("n"), str) and len(values["n"]) * 6 >= MIN_RSA_BITS
    if not is_strong and (values.get("kty"), values.get("crv")) != ("EC", "P-256"):
        return None
    try:
        key = JWKRegistry.import_key(values)
    except (JoseError, ValueError, TypeError):
        return None
    return key if isinstance(key, RSAKey | ECKey) else None


def _get(url: str) -> dict[str, Any]:
    """Fetch a JSON object from the provider, without redirects, within limits of size and time.

    Raises:
        ProviderUnavailableError: the provider does not respond in time, or with something else.
    """
    deadline, body = time.monotonic() + DEADLINE_S, bytearray()
    try:
        with httpx2.stream("GET", url, timeout=5.0, follow_redirects=False, trust_env=False) as response:
            # In pieces, so that a response without an end is stopped.
            for piece in response.iter_raw():
                body += piece
                if len(body) > MAX_RESPONSE_BYTES or time.monotonic() > deadline:
                    raise ProviderUnavailableError(f"the provider's response from {url} is too long or too slow")
        values = json.loads(body)
    except (httpx2.TransportError, httpx2.InvalidURL, ValueError, RecursionError) as error:
        raise ProviderUnavailableError(f"no response from {url}: {type(error).__name__}") from error
    if response.status_code != 200 or not isinstance(values, dict):
        raise ProviderUnavailableError(f"{url} responded with status {response.status_code}")
    return values


def _same_host(url: str, other: str) -> bool:
    """Return whether two URLs have the same scheme, host and port."""
    try:
        return urlsplit(url)[:2] == urlsplit(other)[:2]
    except ValueError:
        return False


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
