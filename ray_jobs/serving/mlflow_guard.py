"""MLflow's server behind the tokens of the service.

    python -m ray_jobs.serving.mlflow_guard --config service.yaml --backend-store-uri sqlite:////srv/mlflow.db \\
        --artifacts-destination /srv/artifacts --port 5000

Jobs and the API send the service's own token (`mlflow_token_file` in the settings) and may do everything that a
training needs. People send their token of the API, as `Authorization: Bearer` or as the password of HTTP Basic, for
which a browser asks; the user's name does not matter. Their tokens read; an administrator's also writes. All users see
all runs. MLflow's job runners, which evaluate and optimise prompts, are not started.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import hmac
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import anyio.to_thread
import uvicorn
from mlflow.server import constants
from mlflow.server.handlers import initialize_backend_stores
from mlflow.server.security_utils import is_allowed_host_header
from mlflow.utils.server_cli_utils import resolve_default_artifact_root
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_jobs.command_line import command
from ray_jobs.serving.mlflow_rules import Need, classify, is_query
from service.api.access import NoTokenError, Tokens
from service.api.limits import Rate, TooManyRequestsError
from service.errors import MagnetError, UsageError
from service.queue.tables import Database
from service.settings.service import ServiceSettings, service_settings

log = logging.getLogger(__name__)

KNOWN_FOR_S = 5.0
"""Seconds for which a token that may only read is not looked up again: for so long a revoked one still reads."""
MOST_KNOWN = 1000
"""Tokens that are remembered."""
GRAPHQL_BYTES = 1 << 20
"""Largest body of a GraphQL request."""
ASK = {"WWW-Authenticate": 'Basic realm="MLflow: your API token is the password", charset="UTF-8"'}


class Guard:
    """Lets requests through to an application whose sender may make them.

    Args:
        app: MLflow's.
        tokens: of the API's users.
        service_token: of jobs and API; None: there is none.
        wrong_per_minute: requests without a valid token, from one address; twice as many in a burst.
        hosts: names and ports under which the server is called; MLflow itself answers some routes under any name.
    """

    def __init__(
        self, app: ASGIApp, tokens: Tokens, service_token: str | None, wrong_per_minute: int, hosts: list[str]
    ) -> None:
        self._app, self._tokens, self._service_token, self._hosts = app, tokens, service_token, hosts
        self._wrong = Rate(wrong_per_minute)
        self._readers: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
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
            refusal = await self._refusal(need, headers, (scope.get("client") or ("unknown",))[0])
        if refusal is None and need is Need.GRAPHQL:
            body = await _body(receive)
            if body is None or not is_query(body):
                refusal = _no(403, "PERMISSION_DENIED", f"GraphQL: only queries of at most {GRAPHQL_BYTES} bytes")
            receive = _replay(body or b"", receive)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        kept = [pair for pair in scope["headers"] if pair[0] != b"authorization"]  # MLflow has no use for it
        await self._app({**scope, "headers": kept}, receive, send)

    async def _refusal(self, need: Need, headers: Mapping[str, str], address: str) -> Response | None:
        """The answer to a request that is not let through."""
        if not is_allowed_host_header(self._hosts, headers.get("host", "")):
            return _no(403, "PERMISSION_DENIED", "unknown Host; name it with --allowed-hosts")
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and need is not Need.READ:
            return _no(403, "PERMISSION_DENIED", "a page of another site sent this request")
        token = _sent(headers.get("authorization", ""))
        service = bool(self._service_token) and hmac.compare_digest(token.encode(), str(self._service_token).encode())
        try:
            admin = False if service else await self._is_admin(token)
        except NoTokenError as error:
            try:
                self._wrong.take(address)
            except TooManyRequestsError:
                return _no(429, "RESOURCE_EXHAUSTED", "too many requests without a valid token", {"Retry-After": "60"})
            return _no(401, "UNAUTHENTICATED", f"{error}; send your API token (MLFLOW_TRACKING_TOKEN)", ASK)
        except MagnetError:
            log.exception("tokens cannot be checked")
            return _no(503, "TEMPORARILY_UNAVAILABLE", "the database of tokens is unavailable")
        allowed = {Need.READ: True, Need.GRAPHQL: True, Need.WRITE: service or admin, Need.ADMIN: admin}
        if allowed.get(need, False):
            return None
        return _no(403, "PERMISSION_DENIED", "people's tokens only read here; jobs write, through the service")

    async def _is_admin(self, token: str) -> bool:
        """Whether a user's token is an administrator's. Raises `NoTokenError`."""
        if not token:
            raise NoTokenError("no token was sent")
        key, now_s = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest(), time.monotonic()
        if self._readers.get(key, 0.0) >= now_s:
            return False
        self._readers.pop(key, None)
        admin = (await anyio.to_thread.run_sync(self._tokens.caller, token)).may("admin")
        if not admin:
            self._readers[key] = now_s + KNOWN_FOR_S
            if len(self._readers) > MOST_KNOWN:
                del self._readers[next(iter(self._readers))]
        return admin


def _sent(authorization: str) -> str:
    """The token of an Authorization header; empty where there is none."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


async def _body(receive: Receive) -> bytes | None:
    """A request's body; None where it is larger than `GRAPHQL_BYTES`."""
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


def _no(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as MLflow's clients read it."""
    return JSONResponse({"error_code": code, "message": message}, status, dict(headers or {}))


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="mlflow_guard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", required=True, help="YAML file with the service's settings")
    add("--backend-store-uri", required=True, help="as of mlflow server")
    add("--artifacts-destination", required=True, help="as of mlflow server")
    add("--host", default="127.0.0.1", help="as of mlflow server (default: %(default)s)")
    add("--port", type=int, default=5000, help="as of mlflow server (default: %(default)s)")
    add("--allowed-hosts", help="as of mlflow server (default: loopback, with this port)")
    options = parser.parse_args(arguments)
    settings = service_settings(options.config, [])
    hosts = options.allowed_hosts or ",".join(f"{name}:{options.port}" for name in ("127.0.0.1", "localhost"))
    database = Database(settings.database_url)
    try:
        app = _mlflow_app(options.backend_store_uri, options.artifacts_destination, hosts)
        wrong_per_minute = settings.wrong_tokens_per_minute
        guard = Guard(app, Tokens(database), service_token(settings), wrong_per_minute, hosts.split(","))
        uvicorn.run(
            guard,
            host=options.host,
            port=options.port,
            log_level="warning",
            server_header=False,
            # Without the list, uvicorn believes X-Forwarded-For of every process on this machine.
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
        )
    finally:
        database.close()
    return 0


def service_token(settings: ServiceSettings) -> str | None:
    """The token of jobs and API.

    Raises:
        UsageError: its file cannot be read, or is empty.
    """
    if settings.mlflow_token_file is None:
        return None
    try:
        token = Path(settings.mlflow_token_file).read_text().strip()
    except OSError as error:
        raise UsageError(f"mlflow_token_file: {error}; write a random token into it") from error
    if not token:
        raise UsageError(f"mlflow_token_file: {settings.mlflow_token_file} is empty; write a random token into it")
    return token


def _mlflow_app(backend_uri: str, artifacts: str, hosts: str) -> ASGIApp:
    """MLflow's application, set up as `mlflow server` does it, in this process."""
    root = resolve_default_artifact_root(True, "", backend_uri)
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: backend_uri,
        constants.REGISTRY_STORE_URI_ENV_VAR: backend_uri,
        constants.ARTIFACT_ROOT_ENV_VAR: root,
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
        "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    initialize_backend_stores(backend_uri, backend_uri, root)
    from mlflow.server.fastapi_app import app  # noqa: PLC0415 - reads the variables above when it is imported

    return app


if __name__ == "__main__":
    command.run(main)
