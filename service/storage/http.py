"""Objects of plain web servers, read by GET and HEAD.

`obstore` is not used here, because it follows redirects to any host: a server inside an allowed prefix could make a job
read an internal address. Here a redirect is followed on the same server only, and the rights of the job are checked for
its target too.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote, urljoin

import httpx2

from service.errors import AccessError, UsageError
from service.storage.rights import resolve
from service.storage.uri import parse

MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A server's response about an object."""

    size_bytes: int
    """Size of the whole object."""
    etag: str
    """ETag or, if the server sends none, the modification time."""
    data: bytes
    """Requested bytes; empty after HEAD."""


class WebStore:
    """A web server from which objects are read.

    Args:
        base: scheme, host and port, such as ``https://lab.org:8443``.
        timeout_s: time limit in seconds for connecting and for each wait for bytes.
    """

    def __init__(self, base: str, timeout_s: float) -> None:
        self._base = base
        timeout = httpx2.Timeout(timeout_s, connect=min(timeout_s, 5.0))
        # Byte ranges of a compressed body would not be ranges of the file.
        headers = {"Accept-Encoding": "identity", "User-Agent": "magnet"}
        self._client = httpx2.Client(timeout=timeout, headers=headers, follow_redirects=False)
        # Other threads may still read from a store that `forget_stores` drops; the last of them closes the client.
        weakref.finalize(self, self._client.close)

    def head(self, key: str) -> HttpAnswer:
        """Request size and ETag of an object; see `get` for the errors."""
        with self._request("HEAD", key, {}) as reply:
            return HttpAnswer(int(reply.headers.get("content-length", 0)), _read_etag(reply), b"")

    def get(self, key: str, start: int | None = None, stop: int | None = None) -> HttpAnswer:
        """Read an object or a byte range of it.

        Args:
            key: name of the object on the server, unquoted.
            start: first byte; None reads the whole object.
            stop: byte after the last one; fewer bytes are returned if the object ends before it.

        Raises:
            FileNotFoundError, PermissionError: the server responds with such a status.
            UsageError: the server redirects to another server or ignores byte ranges.
            OSError: the server failed or did not respond in time.
        """
        ranged = {} if start is None or stop is None else {"Range": f"bytes={start}-{stop - 1}"}
        with self._request("GET", key, ranged) as reply:
            if ranged and reply.status_code == 416:  # an empty object has no ranges, and the response may omit its size
                return self.head(key)
            if ranged and reply.status_code != 206:
                raise UsageError(
                    "the server does not serve byte ranges; copy the file to another store", uri=self._build_url(key)
                )
            if reply.headers.get("content-encoding", "identity") != "identity":
                raise UsageError(
                    "the server compresses its responses, so byte ranges are wrong; turn that off",
                    uri=self._build_url(key),
                )
            data = _read_body(reply, None if start is None or stop is None else stop - start)
            return HttpAnswer(_parse_total_size(reply) if ranged else len(data), _read_etag(reply), data)

    @contextmanager
    def _request(self, method: str, key: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        """Send a request and follow redirects on the same server."""
        url = self._build_url(key)
        for _ in range(MOST_REDIRECTS):
            with _map_http_errors(), self._client.stream(method, url, headers=headers) as reply:
                if reply.status_code not in REDIRECTS:
                    _check_status(reply)
                    yield reply
                    return
                url = self._resolve_redirect(url, reply.headers.get("location", ""))
        raise UsageError(f"more than {MOST_REDIRECTS} redirects", uri=self._build_url(key))

    def _resolve_redirect(self, url: str, target: str) -> str:
        """Return the target URL of a redirect; raise AccessError if it may not be read."""
        absolute = urljoin(url, target)
        if not absolute.startswith(f"{self._base}/"):
            raise AccessError(
                "the server redirects to another one, which is not followed; use the URI of the file on that server",
                uri=url,
            )
        location = resolve(absolute)
        return f"{self._base}/{quote(location.key)}"

    def _build_url(self, key: str) -> str:
        return f"{self._base}/{quote(key)}"


def build_base_url(scheme: str, host: str) -> str:
    """Build the URL of a server.

    Raises:
        UsageError: `host` contains more than a host and a port.
    """
    if any(character in host for character in "@\\?# "):
        raise UsageError(f"{host!r} is not a host; write {scheme}://HOST/KEY", uri=f"{scheme}://{host}")
    return f"{parse(f'{scheme}://{host}/').scheme}://{host}"


@contextmanager
def _map_http_errors() -> Iterator[None]:
    try:
        yield
    except httpx2.HTTPError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


def _check_status(reply: httpx2.Response) -> None:
    status = reply.status_code
    if status in (404, 410):
        raise FileNotFoundError(status)
    if status in (401, 403, 407):
        raise PermissionError(f"the server responded with status {status}")
    if status >= 400 and status != 416:
        raise OSError(f"the server responded with status {status}")


def _read_body(reply: httpx2.Response, max_bytes: int | None) -> bytes:
    """Read the body; raise OSError if it is longer than requested, so that it cannot fill the memory."""
    data = bytearray()
    for chunk in reply.iter_raw():
        data += chunk
        if max_bytes is not None and len(data) > max_bytes:
            raise OSError(f"the server sent more than the {max_bytes} requested bytes")
    return bytes(data)


def _parse_total_size(reply: httpx2.Response) -> int:
    """Parse the size of the whole object from ``Content-Range: bytes 0-99/1234``."""
    total = reply.headers.get("content-range", "").rpartition("/")[2]
    if not total.isdigit():
        raise UsageError(
            "the server does not report the file's size; copy the file to another store", uri=str(reply.url)
        )
    return int(total)


def _read_etag(reply: httpx2.Response) -> str:
    return str(reply.headers.get("etag") or reply.headers.get("last-modified") or "")
