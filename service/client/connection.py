"""Requests to the API: which are repeated, for how long, and which errors they raise."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2

from service.errors import MagnetError, UsageError

PATIENCE_S = 20.0
"""Seconds for which a request is repeated while the service does not respond."""
RETRY_S = 0.5
"""Seconds between two tries of a request."""
MAX_WAIT_S = 60.0
"""Maximum seconds between two tries; a longer Retry-After is cut to this."""
TIMEOUT = httpx2.Timeout(60.0, connect=5.0)
BUSY = (429, 502, 503, 504)
"""HTTP statuses of temporary failures: too many requests, a proxy without its service, an unavailable part."""


class ServiceError(MagnetError):
    """The service refused the request, or did not respond. To act: as `to_do` says.

    Args:
        message: what was wrong.
        status: HTTP status; 0: there was no response.
        to_do: what to do about it.
    """

    def __init__(self, message: str, *, status: int = 0, to_do: str = "", **place: Any) -> None:
        super().__init__(message, **place)
        self.status, self.to_do = status, to_do

    def __str__(self) -> str:
        return f"{self.message}; {self.to_do}" if self.to_do else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with the message alone, and lose the rest in another process.
        return _make_service_error, (self.message, self.status, self.to_do)


def _make_service_error(message: str, status: int, to_do: str) -> ServiceError:
    return ServiceError(message, status=status, to_do=to_do)


class Connection:
    """A connection to a service.

    Args:
        url: URL of the service, http:// or https://.
        token: token sent with each request; None: no token.
        patience_s: seconds for which a request is repeated while the service does not respond.
        transport: replaces the network, for tests.
        report: called with a message, once per outage that is longer than one try.

    Raises:
        UsageError: the URL is invalid.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        patience_s: float = PATIENCE_S,
        transport: httpx2.BaseTransport | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.url, self.patience_s, self._report = _check_url(url), patience_s, report
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        is_local = is_loopback(self.url)
        # A proxy cannot reach this machine's loopback interface.
        mounts = dict.fromkeys(("http://", "https://", "all://")) if is_local else None
        # Loading the CA certificates takes 0.1 s of CPU, and plain HTTP does not need them.
        verify = not (is_local and self.url.startswith("http://"))
        self._http = httpx2.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT, transport=transport, mounts=mounts, verify=verify
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def call(
        self, method: str, path: str, *, once: bool = False, patience_s: float | None = None, **options: Any
    ) -> httpx2.Response:
        """Send a request and return its response.

        Args:
            method: HTTP method.
            path: path below the URL.
            once: whether the request must not be executed twice; it is then repeated only if it was not executed.
            patience_s: replaces the connection's `patience_s`.
            options: options of `httpx2.Client.request`.

        Raises:
            ServiceError: the service refused the request, or did not respond for `patience_s` seconds.
        """
        deadline_s = time.monotonic() + (self.patience_s if patience_s is None else patience_s)
        reported = False
        while True:
            response: httpx2.Response | None = None
            try:
                response = self._http.request(method, path, **options)
            except httpx2.TransportError as error:
                failure, wait_s = self._describe_failure(error), RETRY_S
                # Without a connection the request was not executed; after any other failure it may have been.
                is_final = "CERTIFICATE_VERIFY" in str(error) or (once and not isinstance(error, httpx2.ConnectError))
                if is_final:
                    raise failure from error
            else:
                # The gate refuses with 429 before a route runs, so that this request can always be repeated.
                if response.status_code not in BUSY or (once and response.status_code != 429):
                    return _require_success(response)
                failure, wait_s = _describe_refusal(response), _parse_retry_after_s(response)
            if time.monotonic() + wait_s > deadline_s:
                raise failure
            if self._report is not None and not reported:
                self._report(f"{failure.message}; trying again")
                reported = True
            time.sleep(wait_s)

    def _describe_failure(self, error: Exception) -> ServiceError:
        """Return the error for a request without a response."""
        reason = str(error) or type(error).__name__
        to_do = "start the service (magnet serve), or set MAGNET_URL to its address"
        if "CERTIFICATE_VERIFY" in reason:
            to_do = "set SSL_CERT_FILE to the PEM file of the authority that signed the service's certificate"
        return ServiceError(f"no response from {self.url}: {reason}", to_do=to_do)


def is_loopback(url: str) -> bool:
    """Return whether a URL names this machine by its loopback interface."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{url!r} is not the address of a service; set MAGNET_URL to, for example, https://magnet.lab")
    return url.rstrip("/")


def _require_success(response: httpx2.Response) -> httpx2.Response:
    if response.status_code < 300:
        return response
    raise _describe_refusal(response)


def _describe_refusal(response: httpx2.Response) -> ServiceError:
    """Return the error for a response that refuses a request."""
    try:
        body = response.json()
        return ServiceError(str(body["detail"]), status=response.status_code, to_do=str(body.get("to_do", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        # Proxies and other servers do not send the service's problem bodies.
        text = response.headers.get("location") or response.text[:200]
        return ServiceError(
            f"{response.url} responded with status {response.status_code}: {text}",
            status=response.status_code,
            to_do="check that MAGNET_URL is the address of the service",
        )


def _parse_retry_after_s(response: httpx2.Response) -> float:
    try:
        return min(max(float(response.headers.get("Retry-After", RETRY_S)), 0.05), MAX_WAIT_S)
    except ValueError:  # HTTP also allows a date
        return RETRY_S
