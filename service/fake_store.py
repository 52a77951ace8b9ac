"""A small object store over real HTTP, slow and faulty on demand, with a log of requests.

For tests and benchmarks. It serves the files of a folder as ``http://HOST/bucket/KEY``, which is at once a plain web
server and the path style of S3: ranges, HEAD, PUT, DELETE and listings. As a process of its own:

    python -m service.fake_store FOLDER [--port P] [--latency-ms L]
"""

from __future__ import annotations

import argparse
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"


@dataclass(frozen=True)
class Request:
    """One request that arrived."""

    method: str
    key: str
    start: int | None
    """First byte asked for; None: the whole object."""
    stop: int | None
    status: int


class HttpStore:
    """The store, served by threads of this process while the context lasts.

    Args:
        folder: holds the objects.
        latency_s: added to each request.
        port: 0 for any free one.
    """

    def __init__(self, folder: Path, latency_s: float = 0.0, port: int = 0) -> None:
        self.folder = folder
        self.latency_s = latency_s
        self.log: list[Request] = []
        self.faults: deque[str] = deque()
        """What befalls the next GETs, one each: "500", "503", "403", "expired", "reset", "short", "stall", "other"."""
        self.etags: dict[str, str] = {}
        """ETags other than the files' own."""
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def endpoint(self) -> str:
        """URL without the bucket."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def url(self, key: str) -> str:
        """An object's http:// URL."""
        return f"{self.endpoint}/{BUCKET}/{key}"

    def environment(self) -> dict[str, str]:
        """Variables under which ``s3://bucket/KEY`` lies here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def gets(self) -> list[Request]:
        """The GETs among the requests."""
        return [request for request in self.log if request.method == "GET"]

    def serve(self) -> None:
        """Serve until the process ends."""
        self._server.serve_forever()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for head and body
    disable_nagle_algorithm = True
    store: HttpStore

    # the names of the methods are those that http.server looks for

    def log_message(self, format: str, *args: object) -> None:
        """The log is kept as data."""

    def do_GET(self) -> None:
        """An object, a part of it, or a listing."""
        key, query = self._key()
        if "list-type" in query:
            self._list(query)
            return
        path = self.store.folder / key
        if not path.is_file():
            self._answer("GET", key, 404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        start, stop = self._range(path.stat().st_size)
        if start is not None and start >= path.stat().st_size:
            self._answer("GET", key, 416, b"<Error><Code>InvalidRange</Code></Error>", start, stop)
            return
        fault = self.store.faults.popleft() if self.store.faults else ""
        if fault in ("500", "503", "403"):
            self._answer("GET", key, int(fault), b"<Error><Code>Fault</Code></Error>", start, stop)
        elif fault == "expired":
            self._answer("GET", key, 400, b"<Error><Code>ExpiredToken</Code></Error>", start, stop)
        else:
            self._send(path, key, start, stop, fault)

    def do_HEAD(self) -> None:
        """Size and ETag."""
        key, _ = self._key()
        path = self.store.folder / key
        if path.is_file():
            headers = {**self._describe(path, key), "Content-Length": str(path.stat().st_size)}
            self._answer("HEAD", key, 200, b"", headers=headers)
        else:
            self._answer("HEAD", key, 404, b"")

    def do_PUT(self) -> None:
        """Store an object."""
        key, _ = self._key()
        path = self.store.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer("PUT", key, 200, b"", headers={"ETag": self._describe(path, key)["ETag"]})

    def do_DELETE(self) -> None:
        """Remove an object."""
        key, _ = self._key()
        (self.store.folder / key).unlink(missing_ok=True)
        self._answer("DELETE", key, 204, b"")

    def do_POST(self) -> None:
        """S3's deletion of several objects."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        keys = [part.split("</Key>")[0] for part in body.split("<Key>")[1:]]
        for key in keys:
            (self.store.folder / key).unlink(missing_ok=True)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self._answer("POST", "", 200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    def _send(self, path: Path, key: str, start: int | None, stop: int | None, fault: str) -> None:
        size = path.stat().st_size
        first, last = start or 0, size if stop is None else stop
        with path.open("rb") as file:
            file.seek(first)
            body = file.read(last - first)
        headers = self._describe(path, key)
        if fault == "other":
            headers["ETag"] = '"of another object"'
        if start is not None:
            headers["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if fault == "stall":
            time.sleep(1.5)
        sent = body[: len(body) // 2] if fault == "short" else body
        self.close_connection = fault == "short"
        self._answer("GET", key, 200 if start is None else 206, sent, start, stop, headers, length=len(body))

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        keys = sorted(str(p.relative_to(self.store.folder)) for p in self.store.folder.rglob("*") if p.is_file())
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>x</ETag><Size>{(self.store.folder / key).stat().st_size}</Size></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        self._answer(
            "GET", "", 200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()
        )

    def _answer(
        self,
        method: str,
        key: str,
        status: int,
        body: bytes,
        start: int | None = None,
        stop: int | None = None,
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        if self.store.latency_s:
            time.sleep(self.store.latency_s)
        self.store.log.append(Request(method, key, start, stop, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(length or len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _describe(self, path: Path, key: str) -> dict[str, str]:
        status = path.stat()
        etag = self.store.etags.get(key, f'"{status.st_mtime_ns:x}-{status.st_size:x}"')
        return {"ETag": etag, "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT", "Accept-Ranges": "bytes"}

    def _key(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return unquote(parts.path).removeprefix(f"/{BUCKET}").lstrip("/"), parse_qs(parts.query)

    def _range(self, size: int) -> tuple[int | None, int | None]:
        header = self.headers.get("Range")
        if header is None:
            return None, None
        first, _, last = header.removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1, size) if last else size


def main() -> None:
    """Serve a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    args = parser.parse_args()
    store = HttpStore(args.folder, args.latency_ms / 1e3, args.port)
    print(store.url(""), flush=True)
    store.serve()


if __name__ == "__main__":
    main()
