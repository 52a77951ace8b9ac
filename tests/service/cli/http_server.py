"""An HTTP server whose responses a test defines, and which records all requests."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.service.background import running


@dataclass(frozen=True)
class RecordedRequest:
    """A request that the server got."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode()))

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """A response; a body other than bytes is sent as JSON."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Route = Callable[[RecordedRequest], Reply] | Reply


class HttpServer:
    """Routes by method and path, and the requests that came; other paths respond with 404."""

    def __init__(self, url: str, routes: dict[str, Route]) -> None:
        self.url, self.routes, self.requests = url, routes, list[RecordedRequest]()

    def calls(self, name: str) -> list[RecordedRequest]:
        """Return the requests of a route such as "GET /v1/jobs"."""
        return [request for request in self.requests if f"{request.method} {request.path}" == name]


@contextmanager
def serving(
    routes: dict[str, Route], *, host: str = "127.0.0.1", context: ssl.SSLContext | None = None
) -> Iterator[HttpServer]:
    """Serve routes on a free port while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = RecordedRequest(self.command, parts.path, dict(parse_qsl(parts.query)), dict(self.headers), body)
            http_server.requests.append(request)
            route = http_server.routes.get(f"{request.method} {request.path}", Reply({"detail": "no such route"}, 404))
            reply = route if isinstance(route, Reply) else route(request)
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in ({"Content-Length": str(len(data))} | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        address_family = 10 if ":" in host else 2  # AF_INET6, AF_INET

    server = Server((host, 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    shown = f"[{host}]" if ":" in host else host
    http_server = HttpServer(f"http{'s' if context else ''}://{shown}:{server.server_address[1]}", routes)
    with running(server):
        yield http_server
