"""Requests to the service's API: which are repeated, for how long, and what errors become."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2

from service.errors import MagnetError, UsageError

PATIENCE_S = 20.0
"""Seconds in which a request is repeated while the service does not answer."""
RETRY_S = 0.5
"""Seconds between two tries."""
LONGEST_WAIT_S = 60.0
"""Seconds of a Retry-After header that are believed."""
TIMEOUT = httpx2.Timeout(60.0, connect=5.0)
BUSY = (429, 502, 503, 504)
"""HTTP statuses that pass: too many requests, a proxy without its service, a part that is unavailable."""


class ServiceError(MagnetError):
    """The service refused the request, or did not answer. To act: as `to_do` says.

    Args:
        message: what was wrong.
        status: of HTTP; 0 where there was no answer.
        to_do: what to do about it.
    """

    def __init__(self, message: str, *, status: int = 0, to_do: str = "", **place: Any) -> None:
        super().__init__(message, **place)
        self.status, self.to_do = status, to_do

    def __str__(self) -> str:
        return f"{self.message}; {self.to_do}" if self.to_do else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _service_error, (self.message, self.status, self.to_do)


def _service_error(message: str, status: int, to_do: str) -> ServiceError:
    return ServiceError(message, status=status, to_do=to_do)


class Connection:
    """A connection to a service.

    Args:
        url: http:// or https:// of the service.
        token: sent with each request.
        patience_s: seconds in which a request is repeated while the service does not answer.
        transport: replaces the network, for tests.
        report: called with a message once for each outage that is longer than one try.

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
        self.url, self.patience_s, self._report = _checked_url(url), patience_s, report
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        near = is_loopback(self.url)
        # A proxy cannot reach this machine's loopback interface. Loading the CA certificates takes 0.1 s of CPU.
        mounts = dict.fromkeys(("http://", "https://", "all://")) if near else None
        verify = not (near and self.url.startswith("http://"))
        self._http = httpx2.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT, transport=transport, mounts=mounts, verify=verify
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def call(
        self, method: str, path: str, *, once: bool = False, patience_s: float | None = None, **options: Any
    ) -> httpx2.Response:
        """Send a request and return its answer.

        Args:
            method: of HTTP.
            path: below the URL.
            once: the request must not be executed twice: it is repeated only where it was certainly not executed.
            patience_s: in place of the connection's own.
            options: as of `httpx2.Client.request`.

        Raises:
            ServiceError: the service refused, or gave no answer for `patience_s` seconds.
        """
        deadline_s = time.monotonic() + (self.patience_s if patience_s is None else patience_s)
        reported = False
        while True:
            reply: httpx2.Response | None = None
            try:
                reply = self._http.request(method, path, **options)
            except httpx2.TransportError as error:
                failure, wait_s = self._no_answer(error), RETRY_S
                lasting = "CERTIFICATE_VERIFY" in str(error) or (once and not isinstance(error, httpx2.ConnectError))
                if lasting:
                    raise failure from error
            else:
                if reply.status_code not in BUSY or (once and reply.status_code != 429):
                    return _checked(reply)
                failure, wait_s = _refusal(reply), _retry_after_s(reply)
            if time.monotonic() + wait_s > deadline_s:
                raise failure
            if self._report is not None and not reported:
                self._report(f"{failure.message}; trying again")
                reported = True
            time.sleep(wait_s)

    def _no_answer(self, error: Exception) -> ServiceError:
        why = str(error) or type(error).__name__
        to_do = "start the service (magnet serve), or set MAGNET_URL to its address"
        if "CERTIFICATE_VERIFY" in why:
            to_do = "set SSL_CERT_FILE to the PEM file of the authority that signed the service's certificate"
        return ServiceError(f"no answer from {self.url}: {why}", to_do=to_do)


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine by its loopback interface."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{url!r} is not the address of a service; set MAGNET_URL to, for example, https://magnet.lab")
    return url.rstrip("/")


def _checked(reply: httpx2.Response) -> httpx2.Response:
    if reply.status_code < 300:
        return reply
    raise _refusal(reply)


def _refusal(reply: httpx2.Response) -> ServiceError:
    """The error of an answer; proxies and other servers do not send a problem's body."""
    try:
        body = reply.json()
        return ServiceError(str(body["detail"]), status=reply.status_code, to_do=str(body.get("to_do", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        text = reply.headers.get("location") or reply.text[:200]
        return ServiceError(
            f"{reply.url} answered {reply.status_code}: {text}",
            status=reply.status_code,
            to_do="check that MAGNET_URL is the address of the service",
        )


def _retry_after_s(reply: httpx2.Response) -> float:
    try:
        return min(max(float(reply.headers.get("Retry-After", RETRY_S)), 0.05), LONGEST_WAIT_S)
    except ValueError:  # a date
        return RETRY_S
