"""Guard in front of MLflow's server: requests pass if the service's token, or a user's token, allows them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import time
from collections.abc import Mapping

import anyio.to_thread
from mlflow.server.security_utils import is_allowed_host_header
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_jobs.serving.mlflow_rules import Need, classify, is_query
from service.api.errors import NoTokenError, TooManyRequestsError
from service.api.gate.limits import Rate
from service.api.tokens import Tokens
from service.errors import MagnetError

log = logging.getLogger(__name__)

CACHE_S = 5.0
"""Seconds for which a token that may only read is not looked up again; a revoked token still reads for so long."""
MAX_CACHED = 1000
"""Maximum number of cached tokens."""
GRAPHQL_BYTES = 1 << 20
"""Maximum body of a GraphQL request in bytes."""
CHALLENGE = {"WWW-Authenticate": 'Basic realm="MLflow: your API token is the password", charset="UTF-8"'}


class Guard:
    """ASGI middleware that passes a request on only if its token allows it.

    Args:
        app: MLflow's application.
        tokens: tokens of the API's users.
        service_token: token of jobs and API; None: there is none.
        wrong_per_minute: requests per minute and address without a valid token; a burst may have twice as many.
        hosts: host names with ports under which the server responds; MLflow itself does not check all its routes.
    """

    def __init__(
        self, app: ASGIApp, tokens: Tokens, service_token: str | None, wrong_per_minute: int, hosts: list[str]
    ) -> None:
        self._app, self._tokens, self._service_token, self._hosts = app, tokens, service_token, hosts
        self._wrong_token_rate = Rate(wrong_per_minute)
        # Digests of tokens that may only read, with the time until which they are cached.
        self._readers: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._guard(scope, receive, send)

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        need = classify(scope["method"], scope["path"])
        refusal = None
        if need is not Need.NOTHING:
            refusal = await self._refuse(need, headers, (scope.get("client") or ("unknown",))[0])
        if refusal is None and need is Need.GRAPHQL:
            body = await _read_body(receive)
            if body is None or not is_query(body):
                refusal = _make_error(
                    403, "PERMISSION_DENIED", f"GraphQL: only queries of at most {GRAPHQL_BYTES} bytes are allowed"
                )
            receive = _replay(body or b"", receive)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        # MLflow does not need the token, and must not log it.
        headers_without_token = [pair for pair in scope["headers"] if pair[0] != b"authorization"]
        await self._app({**scope, "headers": headers_without_token}, receive, send)

    async def _refuse(self, need: Need, headers: Mapping[str, str], address: str) -> Response | None:
        """Return the response to a request that must not pass; None: it may pass."""
        if not is_allowed_host_header(self._hosts, headers.get("host", "")):
            return _make_error(403, "PERMISSION_DENIED", "unknown host name; add it to --allowed-hosts")
        # A browser adds the password of HTTP Basic to requests of any page, and says which site the page is from.
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and need is not Need.READ:
            return _make_error(403, "PERMISSION_DENIED", "a page of another site sent this request")
        token = _parse_token(headers.get("authorization", ""))
        is_service = bool(self._service_token) and hmac.compare_digest(
            token.encode(), str(self._service_token).encode()
        )
        try:
            is_admin = False if is_service else await self._is_admin(token)
        except NoTokenError as error:
            try:
                self._wrong_token_rate.take(address)
            except TooManyRequestsError:
                return _make_error(
                    429, "RESOURCE_EXHAUSTED", "too many requests without a valid token", {"Retry-After": "60"}
                )
            return _make_error(
                401, "UNAUTHENTICATED", f"{error}; send your API token (MLFLOW_TRACKING_TOKEN)", CHALLENGE
            )
        except MagnetError:
            log.exception("the database of tokens cannot be read")
            return _make_error(
                503, "TEMPORARILY_UNAVAILABLE", "the database of tokens is unavailable; try again in a moment"
            )
        allowed = {Need.READ: True, Need.GRAPHQL: True, Need.WRITE: is_service or is_admin, Need.ADMIN: is_admin}
        if allowed.get(need, False):
            return None
        return _make_error(
            403, "PERMISSION_DENIED", "users' tokens only read here; jobs write with the service's token"
        )

    async def _is_admin(self, token: str) -> bool:
        """Return whether a user's token is an administrator's. Raises `NoTokenError`."""
        if not token:
            raise NoTokenError("the request has no token")
        key, now_s = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest(), time.monotonic()
        if self._readers.get(key, 0.0) >= now_s:
            return False
        self._readers.pop(key, None)
        caller = await anyio.to_thread.run_sync(self._tokens.identify, token)
        is_admin = caller.has_scope("admin")
        # An administrator's token is looked up each time, so that it cannot write after it was revoked.
        if not is_admin:
            self._readers[key] = now_s + CACHE_S
            if len(self._readers) > MAX_CACHED:
                del self._readers[next(iter(self._readers))]
        return is_admin


def _parse_token(authorization: str) -> str:
    """Return the token of an Authorization header, also from the password of HTTP Basic; empty: there is none."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


async def _read_body(receive: Receive) -> bytes | None:
    """Return a request's body; None: it is larger than `GRAPHQL_BYTES`."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > GRAPHQL_BYTES:
            return None
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _make_error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error in the form that MLflow's clients read."""
    return JSONResponse({"error_code": code, "message": message}, status, dict(headers or {}))
