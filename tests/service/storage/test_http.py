"""Plain web servers: their responses and their redirects."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service import storage
from service.errors import AccessError, MagnetError, UsageError
from service.storage.counters import ReadCounters
from service.storage.ranges import OpenFiles, open_source
from service.storage.rights import Right, Rights

DATA = bytes(range(100))


class Server:
    """A web server whose response depends on the path; it records the paths of all requests."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.redirects: dict[str, str] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.paths.append(self.path)
                if target := server.redirects.get(self.path):
                    self._send(302, b"", {"Location": target})
                elif self.path.endswith("no-ranges"):
                    self._send(200, DATA)
                elif self.path.endswith("compressed"):
                    self._send(206, DATA[:10], {"Content-Encoding": "gzip", "Content-Range": "bytes 0-9/100"})
                elif self.path.endswith("too-much"):
                    self._send(206, DATA * 50, {"Content-Range": "bytes 0-9/100"})
                elif (ranged := self.headers.get("Range")) is not None:
                    start, stop = (int(part) for part in ranged.removeprefix("bytes=").split("-"))
                    part = DATA[start : stop + 1]
                    self._send(206, part, {"Content-Range": f"bytes {start}-{stop}/{len(DATA)}"})
                else:
                    self._send(200, DATA)

            do_HEAD = do_GET

            def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), "ETag": '"1"', **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Server]]:
    """Return a server whose ``/lab`` may be read, and another server."""
    allowed, other = Server(), Server()
    monkeypatch.setenv("MAGNET_STORAGE_DEADLINE_S", "1")
    monkeypatch.setenv("MAGNET_RIGHTS", Rights([Right(prefix=f"{allowed.url}/lab", read=True)]).to_text())
    yield allowed, other
    storage.stores.forget_stores()
    allowed.stop()
    other.stop()


def test_objects_and_ranges_are_read(servers: tuple[Server, Server]) -> None:
    allowed, _ = servers
    assert storage.read_bytes(f"{allowed.url}/lab/a b") == DATA
    assert allowed.paths == ["/lab/a%20b"]
    source = open_source(f"{allowed.url}/lab/x", OpenFiles(), head_bytes=8)
    assert (source.size_bytes, source.head) == (100, DATA[:8])
    assert source.read(50, 10, ReadCounters()) == DATA[50:60]


@pytest.mark.parametrize("read", [storage.read_bytes, storage.stat, lambda uri: open_source(uri, OpenFiles(), None, 8)])
def test_a_redirect_to_another_server_is_not_followed(servers: tuple[Server, Server], read: object) -> None:
    allowed, other = servers
    allowed.redirects["/lab/x"] = f"{other.url}/lab/x"
    assert callable(read)
    with pytest.raises(AccessError, match="redirects to another one"):
        read(f"{allowed.url}/lab/x")
    assert other.paths == []


@pytest.mark.parametrize(
    "target", ["/closed/x", "../closed/x", "/lab/../closed/x", "/lab/%2e%2e/closed/x", "//127.0.0.1/lab"]
)
def test_a_redirect_out_of_the_prefix_is_not_followed(servers: tuple[Server, Server], target: str) -> None:
    allowed, _ = servers
    allowed.redirects["/lab/x"] = target
    with pytest.raises(UsageError):
        storage.read_bytes(f"{allowed.url}/lab/x")
    assert allowed.paths == ["/lab/x"]


def test_a_redirect_within_the_prefix_is_followed(servers: tuple[Server, Server]) -> None:
    allowed, _ = servers
    allowed.redirects["/lab/x"] = "/lab/y"
    assert storage.read_bytes(f"{allowed.url}/lab/x") == DATA


def test_a_redirect_loop_ends(servers: tuple[Server, Server]) -> None:
    allowed, _ = servers
    allowed.redirects["/lab/x"] = "/lab/x"
    with pytest.raises(UsageError, match="redirects"):
        storage.read_bytes(f"{allowed.url}/lab/x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-ranges", "does not serve byte ranges"),
        ("compressed", "compresses"),
        ("too-much", "more than the 8 requested"),
    ],
)
def test_a_server_that_ignores_byte_ranges_is_refused(servers: tuple[Server, Server], name: str, message: str) -> None:
    allowed, _ = servers
    with pytest.raises(MagnetError, match=message):
        open_source(f"{allowed.url}/lab/{name}", OpenFiles(), None, 8)


@pytest.mark.parametrize("host", ["user@127.0.0.1", "127.0.0.1\\@x", "127.0.0.1#x", "127.0.0.1?x"])
def test_a_host_with_extra_parts_is_refused(host: str) -> None:
    with pytest.raises(UsageError):
        storage.read_bytes(f"http://{host}/lab/x", 0.2)
