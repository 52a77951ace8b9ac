"""Login of a terminal by an OpenID Connect provider: the device authorization grant (RFC 8628).

The user opens the provider's page in any browser, on any machine, and types a code; this program waits for the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx2

from service.client.connection import is_loopback
from service.errors import MagnetError, UsageError

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
SCOPE = "openid email profile"
INTERVAL_S = 5.0
"""Seconds between two questions, unless the provider says otherwise; also what `slow_down` adds."""
TIMEOUT_S = 20.0


class LoginError(MagnetError):
    """The provider did not log the user in. To act: the user, or the provider's administrator."""


def device_login(issuer: str, client_id: str, *, show: Callable[[str], None]) -> str:
    """Log the user in and return the ID token.

    Args:
        issuer: URL of the provider.
        client_id: of the service at the provider.
        show: called with what the user has to do.

    Raises:
        LoginError: the user refused, did not confirm in time, or the provider failed.
        UsageError: the provider does not offer this login.
    """
    with httpx2.Client(timeout=TIMEOUT_S) as http:
        device_endpoint, token_endpoint = _endpoints(http, issuer)
        try:
            started = _post(http, device_endpoint, {"client_id": client_id, "scope": SCOPE})
        except httpx2.TransportError as error:
            raise LoginError(f"{device_endpoint} does not answer: {error or type(error).__name__}") from error
        if not {"device_code", "user_code", "verification_uri", "expires_in"} <= started.keys():
            raise LoginError(f"{issuer} refused to start a login: {_reason(started)}")
        page = started.get("verification_uri_complete") or started["verification_uri"]
        show(f"open {page} in a browser and confirm the code {started['user_code']}")
        answer = _confirmed(http, token_endpoint, client_id, started)
    if "id_token" not in answer:
        raise LoginError(f"{issuer} sent no ID token; its administrator allows the scope openid for this client")
    return str(answer["id_token"])


def _confirmed(
    http: httpx2.Client, token_endpoint: str, client_id: str, started: Mapping[str, Any]
) -> Mapping[str, Any]:
    """WindowRequest for the result until the user has confirmed the code."""
    deadline_s = time.monotonic() + float(started["expires_in"])
    pause_s = float(started.get("interval", INTERVAL_S))
    asked = {"grant_type": GRANT, "device_code": str(started["device_code"]), "client_id": client_id}
    while time.monotonic() < deadline_s:
        time.sleep(pause_s)
        try:
            answer = _post(http, token_endpoint, asked)
        except httpx2.TransportError:  # RFC 8628, 3.5: ask less often
            pause_s += INTERVAL_S
            continue
        refusal = answer.get("error")
        if refusal is None:
            return answer
        if refusal == "slow_down":
            pause_s += INTERVAL_S
        elif refusal != "authorization_pending":
            raise LoginError(_ENDINGS.get(str(refusal), f"{token_endpoint} refused the login: {_reason(answer)}"))
    raise LoginError(_ENDINGS["expired_token"])


_ENDINGS = {
    "access_denied": "the login was refused in the browser",
    "expired_token": "the code has expired; run magnet login again and confirm it in time",
}


def _endpoints(http: httpx2.Client, issuer: str) -> tuple[str, str]:
    """Where a device login starts, and where its result is asked for."""
    _require_safe(issuer)
    url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    try:
        reply = http.get(url)
        found = reply.json() if reply.status_code == 200 else None
    except (httpx2.TransportError, ValueError) as error:
        raise LoginError(f"{url} does not answer: {error or type(error).__name__}") from error
    if not isinstance(found, dict) or str(found.get("issuer", "")).rstrip("/") != issuer.rstrip("/"):
        raise LoginError(f"{url} is not the discovery document of {issuer}; ask the service's administrator")
    if "device_authorization_endpoint" not in found or "token_endpoint" not in found:
        raise UsageError(f"{issuer} offers no login by device code; ask an administrator for a token")
    endpoints = str(found["device_authorization_endpoint"]), str(found["token_endpoint"])
    for endpoint in endpoints:
        _require_safe(endpoint)
    return endpoints


def _require_safe(url: str) -> None:
    if not url.startswith("https://") and not is_loopback(url):
        raise LoginError(f"{url} is not encrypted; a login needs https://")


def _post(http: httpx2.Client, url: str, form: Mapping[str, str]) -> dict[str, Any]:
    """A form's answer, also of a refusal, which says why as JSON."""
    reply = http.post(url, data=dict(form), headers={"Accept": "application/json"})
    try:
        found = reply.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise LoginError(f"{url} answered {reply.status_code} without a reason; try again later")
    return found


def _reason(answer: Mapping[str, Any]) -> str:
    return str(answer.get("error_description") or answer.get("error") or "no reason given")
