"""A small object store over HTTP that can be slow or faulty and logs all requests, for tests, benchmarks and the demo.

It serves the files of a folder as ``http://HOST/BUCKET/KEY``. These URLs fit a plain web server, the path style of S3
and of Google's XML API, and Azure's blobs. It supports ranges, HEAD, PUT, DELETE and listings. To run it as a separate
process:

    python -m service.testing.fake_store FOLDER [--port P] [--latency-ms L] [--bucket B]

Between two SIGUSR1 signals it answers all requests by 503; between SIGSTOP and SIGCONT it does not answer.

It uses one event loop and its own parser instead of `http.server`, because a benchmark on the same cores would miss the
CPU time that a slower store takes.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
"""Default name of the bucket."""
MODIFIED = "Wed, 01 Jan 2025 00:00:00 GMT"
"""Last-Modified header of all objects."""
STALL_S = 1.5
"""Delay of a stalled response in seconds."""


@dataclass(frozen=True)
class Request:
    """A request that the store received."""

    method: str
    """HTTP method."""
    key: str
    """Key of the object, without the bucket."""
    start: int | None
    """First byte of the requested range; None for the whole object."""
    stop: int | None
    """Byte after the requested range; None for the end of the object."""
    status: int
    """HTTP status of the response."""


@dataclass(frozen=True)
class _Response:
    """Response to a request."""

    status: int
    """HTTP status."""
    body: bytes = b""
    """Body, without headers."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers in addition to Content-Length."""
    fault: str = ""
    """Fault while the response is sent, see `HttpStore.faults`."""


class HttpStore:
    """The object store, as a context manager that serves from a thread of this process.

    Args:
        folder: folder of the objects.
        latency_s: delay of each response in seconds.
        port: TCP port; 0 for any free port.
        bucket: name of the bucket.
    """

    def __init__(self, folder: Path, latency_s: float = 0.0, port: int = 0, bucket: str = BUCKET) -> None:
        self.folder = folder
        self.bucket = bucket
        self.latency_s = latency_s
        self.log: list[Request] = []
        self.faults: deque[str] = deque()
        """Faults of the next GETs, one each: "500", "503", "403", "expired", "reset", "short", "stall", "other"."""
        self.etags: dict[str, str] = {}
        """ETags by key, in place of those made from the files."""
        self.unavailable = False
        """Whether all requests are answered by 503."""
        self._socket = socket.create_server(("127.0.0.1", port), backlog=256)
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Transport] = set()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self.serve, daemon=True)

    @property
    def endpoint(self) -> str:
        """URL of the store without the bucket."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def url(self, key: str) -> str:
        """Return the http:// URL of an object."""
        return f"{self.endpoint}/{self.bucket}/{key}"

    def environment(self) -> dict[str, str]:
        """Return environment variables by which ``s3://bucket/KEY`` refers to this store."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def gets(self) -> list[Request]:
        """Return the GET requests of the log."""
        return [request for request in self.log if request.method == "GET"]

    def serve(self) -> None:
        """Serve until the process or the context ends."""
        self._loop.run_until_complete(self._loop.create_server(lambda: _Connection(self), sock=self._socket))
        self._listening.set()
        self._loop.run_forever()
        for connection in self._connections:
            connection.abort()
        self._socket.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening.wait()  # stopping a loop that does not listen yet raises an error
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def toggle(self, *_: object) -> None:
        """Switch between available and unavailable; a signal handler."""
        self.unavailable = not self.unavailable

    def register(self, connection: asyncio.Transport) -> None:
        """Register a connection, so that it is closed with the store."""
        self._connections.add(connection)

    def unregister(self, connection: asyncio.Transport) -> None:
        """Unregister a closed connection."""
        self._connections.discard(connection)

    def respond(self, method: str, target: str, headers: dict[str, str], body: bytes) -> _Response:
        """Return the response to a request; header names are lower case."""
        parts = urlsplit(target)
        key = unquote(parts.path).removeprefix(f"/{self.bucket}").lstrip("/")
        query = parse_qs(parts.query)
        start, stop = None, None
        if self.unavailable:
            response = _Response(503)
        elif method == "GET" and "list-type" in query:
            response = self._list(query.get("prefix", [""])[0])
        elif method == "GET" and query.get("comp") == ["list"]:
            response = self._list_blobs(query.get("prefix", [""])[0])
        elif method == "GET":
            start, stop = _parse_range(headers.get("range"))
            response = self._get(self.folder / key, key, start, stop)
        elif method == "HEAD":
            response = self._head(self.folder / key, key)
        elif method == "PUT":
            response = self._put(self.folder / key, key, body)
        elif method == "DELETE":
            (self.folder / key).unlink(missing_ok=True)
            response = _Response(204)
        elif method == "POST":
            response = self._delete_several(body.decode())
        else:
            response = _Response(501)
        self.log.append(Request(method, key, start, stop, response.status))
        return response

    def _get(self, path: Path, key: str, start: int | None, stop: int | None) -> _Response:
        if not path.is_file():
            return _Response(404, b"<Error><Code>NoSuchKey</Code></Error>")
        size = path.stat().st_size
        if start is not None and start >= size:
            return _Response(416, b"<Error><Code>InvalidRange</Code></Error>")
        fault = self.faults.popleft() if self.faults else ""
        if fault in ("500", "503", "403"):
            return _Response(int(fault), b"<Error><Code>Fault</Code></Error>")
        if fault == "expired":
            return _Response(400, b"<Error><Code>ExpiredToken</Code></Error>")
        first, last = start or 0, size if stop is None else min(stop, size)
        with path.open("rb", buffering=0) as file:
            file.seek(first)
            body = file.read(last - first)
        headers = self._make_headers(path, key) | {"Content-Length": str(len(body))}
        if fault == "other":
            headers["ETag"] = '"of another object"'
        if start is not None:
            headers["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
        return _Response(200 if start is None else 206, body, headers, fault)

    def _head(self, path: Path, key: str) -> _Response:
        if not path.is_file():
            return _Response(404)
        return _Response(200, headers=self._make_headers(path, key) | {"Content-Length": str(path.stat().st_size)})

    def _put(self, path: Path, key: str, body: bytes) -> _Response:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        return _Response(200, headers={"ETag": self._make_headers(path, key)["ETag"]})

    def _delete_several(self, body: str) -> _Response:
        keys = [part.split("</Key>")[0] for part in body.split("<Key>")[1:]]
        for key in keys:
            (self.folder / key).unlink(missing_ok=True)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return _Response(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    def _list(self, prefix: str) -> _Response:
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>x</ETag><Size>{(self.folder / key).stat().st_size}</Size></Contents>"
            for key in self._keys(prefix)
        )
        listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
        return _Response(200, listing.encode())

    def _list_blobs(self, prefix: str) -> _Response:
        items = "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{MODIFIED}</Last-Modified><Etag>x</Etag>"
            f"<Content-Length>{(self.folder / key).stat().st_size}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
            for key in self._keys(prefix)
        )
        return _Response(200, f"<EnumerationResults><Blobs>{items}</Blobs></EnumerationResults>".encode())

    def _keys(self, prefix: str) -> list[str]:
        keys = sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())
        return [key for key in keys if key.startswith(prefix)]

    def _make_headers(self, path: Path, key: str) -> dict[str, str]:
        status = path.stat()
        # As in a real store, the ETag changes when the object is replaced.
        etag = self.etags.get(key, f'"{status.st_mtime_ns:x}-{status.st_size:x}"')
        return {"ETag": etag, "Last-Modified": MODIFIED, "Accept-Ranges": "bytes"}


class _Connection(asyncio.Protocol):
    """A connection of one client, whose requests are answered one after the other."""

    def __init__(self, store: HttpStore) -> None:
        self._store = store
        self._received = bytearray()
        self._busy = False
        self._waits_for_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._store.register(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._store.unregister(self._transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._respond_next()

    def _respond_next(self) -> None:
        """Answer the next request if it has arrived completely."""
        end = self._received.find(b"\r\n\r\n")
        if self._busy or end < 0:
            return
        first, *lines = self._received[:end].decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length, start = int(headers.get("content-length", 0)), end + 4
        if len(self._received) < start + length:
            # Some clients send the body only after this interim response.
            if "100-continue" in headers.get("expect", "") and not self._waits_for_body:
                self._waits_for_body = True
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        body = bytes(self._received[start : start + length])
        del self._received[: start + length]
        self._busy, self._waits_for_body = True, False
        response = self._store.respond(method, target, headers, body)
        delay_s = self._store.latency_s + (STALL_S if response.fault == "stall" else 0.0)
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, self._send, response)
        else:
            self._send(response)

    def _send(self, response: _Response) -> None:
        self._busy = False
        if self._transport.is_closing():
            return
        if response.fault == "reset":
            # With a linger time of 0 the socket sends a reset instead of a regular end.
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
            return
        headers = {"Content-Length": str(len(response.body))} | response.headers
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        status = f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\n"
        short = response.fault == "short"
        sent = response.body[: len(response.body) // 2] if short else response.body
        self._transport.write(f"{status}{head}\r\n".encode("latin-1") + sent)
        if short:
            self._transport.close()
        else:
            self._respond_next()


def _parse_range(header: str | None) -> tuple[int | None, int | None]:
    """Return the first byte and the byte after the last one; None where the header does not state it."""
    if header is None:
        return None, None
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1 if last else None


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the objects")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: any free one)")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="delay of each response (default 0)")
    parser.add_argument("--bucket", default=BUCKET, help="name of the bucket (default: bucket)")
    args = parser.parse_args()
    store = HttpStore(args.folder, args.latency_ms / 1e3, args.port, args.bucket)
    signal.signal(signal.SIGUSR1, store.toggle)
    print(store.url(""), flush=True)
    store.serve()


if __name__ == "__main__":
    main()
