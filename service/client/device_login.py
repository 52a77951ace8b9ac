"""Login from a terminal at an OpenID Connect provider: the device authorization grant (RFC 8628).

The user opens the provider's page in a browser on any machine and confirms a code; this program polls for the result.
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
"""Seconds between two polls unless the provider states others; the response `slow_down` adds as many."""
TIMEOUT_S = 20.0
"""Seconds that the provider has to respond."""


class DeviceLoginError(MagnetError):
    """The provider did not log the user in. To act: the user, or the provider's administrator."""


def log_in_with_device_code(issuer: str, client_id: str, *, show: Callable[[str], None]) -> str:
    """Log the user in, and return the ID token.

    Args:
        issuer: URL of the provider.
        client_id: ID of the service at the provider.
        show: called with an instruction for the user.

    Raises:
        DeviceLoginError: the user refused or did not confirm in time, or the provider failed.
        UsageError: the provider does not support the device authorization grant.
    """
    with httpx2.Client(timeout=TIMEOUT_S) as http:
        device_endpoint, token_endpoint = _discover_endpoints(http, issuer)
        try:
            started = _post(http, device_endpoint, {"client_id": client_id, "scope": SCOPE})
        except httpx2.TransportError as error:
            raise DeviceLoginError(f"no response from {device_endpoint}: {error or type(error).__name__}") from error
        if not {"device_code", "user_code", "verification_uri", "expires_in"} <= started.keys():
            raise DeviceLoginError(f"{issuer} refused to start a login: {_format_reason(started)}")
        # The complete address contains the code, so that the user only confirms it.
        page = started.get("verification_uri_complete") or started["verification_uri"]
        show(f"open {page} in a browser and confirm the code {started['user_code']}")
        tokens = _poll(http, token_endpoint, client_id, started)
    if "id_token" not in tokens:
        raise DeviceLoginError(
            f"{issuer} sent no ID token; ask its administrator to allow the scope openid for this client"
        )
    return str(tokens["id_token"])


def _poll(http: httpx2.Client, token_endpoint: str, client_id: str, started: Mapping[str, Any]) -> Mapping[str, Any]:
    """Poll the provider until the user has confirmed the code. Raises `DeviceLoginError`."""
    deadline_s = time.monotonic() + float(started["expires_in"])
    pause_s = float(started.get("interval", INTERVAL_S))
    form = {"grant_type": GRANT, "device_code": str(started["device_code"]), "client_id": client_id}
    while time.monotonic() < deadline_s:
        time.sleep(pause_s)
        try:
            tokens = _post(http, token_endpoint, form)
        except httpx2.TransportError:  # RFC 8628, 3.5: poll less often after a failure
            pause_s += INTERVAL_S
            continue
        refusal = tokens.get("error")
        if refusal is None:
            return tokens
        if refusal == "slow_down":
            pause_s += INTERVAL_S
        elif refusal != "authorization_pending":
            raise DeviceLoginError(
                _MESSAGES.get(str(refusal), f"{token_endpoint} refused the login: {_format_reason(tokens)}")
            )
    raise DeviceLoginError(_MESSAGES["expired_token"])


# Errors of RFC 8628, section 3.5, that end the login.
_MESSAGES = {
    "access_denied": "the login was refused in the browser; run magnet login again to retry",
    "expired_token": "the code has expired; run magnet login again, and confirm the code in time",
}


def _discover_endpoints(http: httpx2.Client, issuer: str) -> tuple[str, str]:
    """Return the URLs at which a device login starts, and at which its result is polled.

    Raises:
        DeviceLoginError: the provider does not respond, or an address is not encrypted.
        UsageError: the provider does not support the device authorization grant.
    """
    _require_safe(issuer)
    url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    try:
        response = http.get(url)
        metadata = response.json() if response.status_code == 200 else None
    except (httpx2.TransportError, ValueError) as error:
        raise DeviceLoginError(f"no response from {url}: {error or type(error).__name__}") from error
    # The issuer comes from the service; a document that names another one could collect the user's login.
    if not isinstance(metadata, dict) or str(metadata.get("issuer", "")).rstrip("/") != issuer.rstrip("/"):
        raise DeviceLoginError(f"{url} is not the discovery document of {issuer}; ask the service's administrator")
    if "device_authorization_endpoint" not in metadata or "token_endpoint" not in metadata:
        raise UsageError(f"{issuer} offers no login by device code; ask an administrator for a token")
    endpoints = str(metadata["device_authorization_endpoint"]), str(metadata["token_endpoint"])
    for endpoint in endpoints:
        _require_safe(endpoint)
    return endpoints


def _require_safe(url: str) -> None:
    if not url.startswith("https://") and not is_loopback(url):
        raise DeviceLoginError(f"{url} is not encrypted; a login needs https://; ask the service's administrator")


def _post(http: httpx2.Client, url: str, form: Mapping[str, str]) -> dict[str, Any]:
    """Send a form, and return the JSON object of the response, also of a refusal."""
    response = http.post(url, data=dict(form), headers={"Accept": "application/json"})
    try:
        values = response.json()
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise DeviceLoginError(f"{url} responded with status {response.status_code} without a reason; try again later")
    return values


def _format_reason(response: Mapping[str, Any]) -> str:
    return str(response.get("error_description") or response.get("error") or "no reason given")
