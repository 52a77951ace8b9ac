"""The API on a real server on a loopback port, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from service.operations.serving import make_server_config
from tests.service.api.api_app import Api


@contextmanager
def serving(app: Api) -> Iterator[int]:
    """Serve an API while the context lasts, configured as by `serve_api`; the context's value is the port."""
    family = socket.AF_INET6 if ":" in app.settings.host else socket.AF_INET
    listening = socket.socket(family)
    listening.bind((app.settings.host, 0))
    server = uvicorn.Server(make_server_config(app.http.app, app.settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield int(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def read_until_closed(connection: socket.socket, limit_s: float = 30.0) -> bytes:
    """Return what the server sends until it closes the connection. Raises `TimeoutError` if it does not."""
    connection.settimeout(limit_s)
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received
