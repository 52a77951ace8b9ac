"""The gate in front of the application.

A request passes the checks from the cheapest to the most expensive one: host name, token, rate, and only then its
body, which is read only where a route takes one.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access import CALLER_KEY, Caller
from service.api.docs import FILES, PAGE
from service.api.errors import NoTokenError, TooManyRequestsError
from service.api.gate.body import read_body, skip_body
from service.api.gate.denials import Denials
from service.api.gate.headers import add_headers
from service.api.gate.hosts import Hosts
from service.api.gate.limits import Rate, to_source
from service.api.problems import to_response
from service.api.tokens import Tokens
from service.errors import MagnetError
from service.settings.service import ServiceSettings

LOGIN = "/v1/login"
OPEN_PATHS = ("/healthz", "/readyz", "/metrics", PAGE, "/openapi.json", LOGIN)
"""Paths that need no token."""
OPEN_BODY_BYTES = 128 << 10
"""Maximum body in bytes of a request without a token: an ID token with many groups fits."""


class Gate:
    """ASGI middleware that checks requests before the application sees them.

    Args:
        app: the application.
        settings: service settings.
        tokens: the service's tokens.
        routes: routes of the application, to know which take a body.
        denials: recorder of denied requests.
    """

    def __init__(
        self, app: ASGIApp, settings: ServiceSettings, tokens: Tokens, routes: Sequence[BaseRoute], denials: Denials
    ) -> None:
        self._app, self._settings, self._tokens, self._denials = app, settings, tokens, denials
        self._routes_with_body = [route for route in routes if getattr(route, "body_field", None) is not None]
        self._hosts = Hosts(settings)
        self._rate = Rate(settings.requests_per_minute)
        self._open_rate = Rate(settings.requests_per_minute)
        self._wrong_token_rate = Rate(settings.wrong_tokens_per_minute, "requests without a valid token")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] != "http":  # lifespan: start and end of the process
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                add_headers(message, tls=self._settings.tls_certificate is not None)
            await send(message)

        try:
            checked_receive = await self._check(scope, receive)
        except MagnetError as error:
            await to_response(error)(scope, receive, send_with_headers)
        else:
            await self._app(scope, checked_receive, send_with_headers)
        await self._denials.record(status, scope)

    async def _check(self, scope: Scope, receive: Receive) -> Receive:
        """Return the `receive` with which a request may pass. Raises `MagnetError` for a refused request."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._hosts.check(headers)
        address = scope["client"][0] if scope.get("client") else None
        source, is_open = to_source(address), scope["path"] in OPEN_PATHS or scope["path"].startswith(FILES)
        if is_open:
            # A login can be guessed like a token, so it counts as a request without a valid one.
            is_login = (scope["path"], scope["method"]) == (LOGIN, "POST")
            (self._wrong_token_rate if is_login else self._open_rate).take(source)
        else:
            scope[CALLER_KEY] = caller = await self._identify(headers, address, source)
            self._rate.take(caller.owner)  # not by token: its owner could rotate it to reset the rate
        if not self._takes_body(scope):
            return skip_body(receive)
        max_bytes = min(self._settings.max_body_bytes, OPEN_BODY_BYTES) if is_open else self._settings.max_body_bytes
        return await read_body(receive, headers, max_bytes, self._settings.request_timeout_s)

    async def _identify(self, headers: list[tuple[bytes, bytes]], address: str | None, source: str) -> Caller:
        """Return the caller. Raises `NoTokenError`, or `TooManyRequestsError` after too many wrong tokens."""
        try:
            secret = _parse_bearer(headers)
            return await run_in_threadpool(self._tokens.identify, secret, address)
        except NoTokenError as error:
            if not self._wrong_token_rate.allow(source):
                raise TooManyRequestsError(
                    f"more than {self._settings.wrong_tokens_per_minute} requests a minute without a valid token"
                ) from error
            raise

    def _takes_body(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._routes_with_body)


def _parse_bearer(headers: list[tuple[bytes, bytes]]) -> str:
    """Return the secret of the Authorization header. Raises `NoTokenError`."""
    values = [value for name, value in headers if name == b"authorization"]
    scheme, _, secret = values[0].decode("latin-1").partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not secret.strip():
        raise NoTokenError("the request has no token")
    return secret.strip()
