"""The gate in front of the app. A request passes its checks from the cheapest to the most expensive one: name of the
host, token, rate, and only then its body, which is read only where a route takes one."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access import Caller, NoTokenError, Tokens
from service.api.bodies import read_body, without_body
from service.api.callers import CALLER
from service.api.denials import Denials
from service.api.docs import FILES, PAGE
from service.api.headers import add_headers
from service.api.hosts import Hosts
from service.api.limits import Rate, TooManyRequestsError, source_of
from service.api.problems import answer_to
from service.errors import MagnetError
from service.settings.service import ServiceSettings

OPEN = ("/healthz", "/readyz", "/metrics", PAGE, "/openapi.json", "/v1/login")
"""Paths that need no token."""
LOGIN = "/v1/login"
OPEN_BODY_BYTES = 128 << 10
"""Of a request without a token: an ID token with many groups."""


class Gate:
    """Checks requests before the app sees them.

    Args:
        app: what is guarded.
        settings: of the service.
        tokens: that are valid.
        routes: of the app, to know which take a body.
        denials: are recorded here.
    """

    def __init__(
        self, app: ASGIApp, settings: ServiceSettings, tokens: Tokens, routes: Sequence[BaseRoute], denials: Denials
    ) -> None:
        self._app, self._settings, self._tokens, self._denials = app, settings, tokens, denials
        self._with_body = [route for route in routes if getattr(route, "body_field", None) is not None]
        self._hosts = Hosts(settings)
        self._rate = Rate(settings.requests_per_minute)
        self._open_rate = Rate(settings.requests_per_minute)
        self._wrong_rate = Rate(settings.wrong_tokens_per_minute, "requests without a valid token")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":  # the start and the end of the process
            await self._app(scope, receive, send)
            return
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                add_headers(message, tls=self._settings.tls_certificate is not None)
            await send(message)

        try:
            passed = await self._check(scope, receive)
        except MagnetError as error:
            answer = answer_to(error)
            await answer(scope, receive, watch)
        else:
            await self._app(scope, passed, watch)
        await self._denials.note(status, scope)

    async def _check(self, scope: Scope, receive: Receive) -> Receive:
        """The body's `receive` of a request that may pass."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._hosts.check(headers)
        address = scope["client"][0] if scope.get("client") else None
        source, is_open = source_of(address), scope["path"] in OPEN or scope["path"].startswith(FILES)
        if is_open:
            rate = self._wrong_rate if (scope["path"], scope["method"]) == (LOGIN, "POST") else self._open_rate
            rate.take(source)
        else:
            scope[CALLER] = caller = await self._caller(headers, address, source)
            self._rate.take(caller.owner)  # not by token, which its owner may rotate
        if not self._takes_body(scope):
            return without_body(receive)
        max_bytes = min(self._settings.max_body_bytes, OPEN_BODY_BYTES) if is_open else self._settings.max_body_bytes
        return await read_body(receive, headers, max_bytes, self._settings.request_timeout_s)

    async def _caller(self, headers: list[tuple[bytes, bytes]], address: str | None, source: str) -> Caller:
        """Whose token it is. Raises `NoTokenError`, or `TooManyRequestsError` if too many were wrong."""
        try:
            secret = _bearer(headers)
            return await run_in_threadpool(self._tokens.caller, secret, address)
        except NoTokenError as error:
            if not self._wrong_rate.allow(source):
                raise TooManyRequestsError(
                    f"more than {self._settings.wrong_tokens_per_minute} requests a minute without a valid token"
                ) from error
            raise

    def _takes_body(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._with_body)


def _bearer(headers: list[tuple[bytes, bytes]]) -> str:
    """The secret of the Authorization header. Raises `NoTokenError`."""
    sent = [value for name, value in headers if name == b"authorization"]
    scheme, _, secret = sent[0].decode("latin-1").partition(" ") if len(sent) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not secret.strip():
        raise NoTokenError("no token was sent")
    return secret.strip()
