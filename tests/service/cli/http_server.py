"""A real HTTP server whose answers a test writes down, with all requests that came."""

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
class Asked:
    """A request."""

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
    """An answer; a body that is no bytes is sent as JSON."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Route = Callable[[Asked], Reply] | Reply


class HttpServer:
    """Answers by method and path; 404 elsewhere."""

    def __init__(self, url: str, routes: dict[str, Route]) -> None:
        self.url, self.routes, self.asked = url, routes, list[Asked]()

    def calls(self, name: str) -> list[Asked]:
        """Requests such as "GET /v1/jobs"."""
        return [asked for asked in self.asked if f"{asked.method} {asked.path}" == name]


@contextmanager
def serving(
    routes: dict[str, Route], *, host: str = "127.0.0.1", context: ssl.SSLContext | None = None
) -> Iterator[HttpServer]:
    """A server on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.command, parts.path, dict(parse_qsl(parts.query)), dict(self.headers), body)
            own.asked.append(asked)
            route = own.routes.get(f"{asked.method} {asked.path}", Reply({"detail": "no such route"}, 404))
            reply = route if isinstance(route, Reply) else route(asked)
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
    own = HttpServer(f"http{'s' if context else ''}://{shown}:{server.server_address[1]}", routes)
    with running(server):
        yield own
