"""Objects of plain web servers, read by GET and HEAD.

Not by `obstore`, which follows redirects to any host: a server inside an allowed prefix could so make a job read an
internal address. Here a redirect is followed on the same server only, and its target is held to the job's rights too.
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
    """What a server said of an object."""

    size_bytes: int
    """Of the whole object."""
    etag: str
    """ETag, or where the server gives none, the time of the last change."""
    data: bytes
    """The bytes asked for; empty after HEAD."""


class HttpStore:
    """A web server whose objects are read.

    Args:
        base: scheme, host and port, such as ``https://lab.org:8443``.
        timeout_s: of connecting, and of each wait for bytes.
    """

    def __init__(self, base: str, timeout_s: float) -> None:
        self._base = base
        timeout = httpx2.Timeout(timeout_s, connect=min(timeout_s, 5.0))
        # A body that the server compresses has other byte ranges.
        headers = {"Accept-Encoding": "identity", "User-Agent": "magnet"}
        self._client = httpx2.Client(timeout=timeout, headers=headers, follow_redirects=False)
        weakref.finalize(self, self._client.close)  # a store that is forgotten may still be read from

    def head(self, key: str) -> HttpAnswer:
        """Size and ETag of an object. Errors as in `get`."""
        with self._answer("HEAD", key, {}) as reply:
            return HttpAnswer(int(reply.headers.get("content-length", 0)), _etag(reply), b"")

    def get(self, key: str, start: int | None = None, stop: int | None = None) -> HttpAnswer:
        """An object, or its bytes from `start` up to `stop`; fewer where it ends before.

        Raises:
            FileNotFoundError, PermissionError: the server answers so.
            UsageError: it redirects to another server, or ignores byte ranges.
            OSError: it failed, or did not answer in time.
        """
        ranged = {} if start is None or stop is None else {"Range": f"bytes={start}-{stop - 1}"}
        with self._answer("GET", key, ranged) as reply:
            if ranged and reply.status_code == 416:  # of an empty object; the answer need not say its size
                return self.head(key)
            if ranged and reply.status_code != 206:
                raise UsageError(
                    "the server does not serve byte ranges; copy the file to another store", uri=self._at(key)
                )
            if reply.headers.get("content-encoding", "identity") != "identity":
                raise UsageError("the server compresses what it sends, so that ranges differ", uri=self._at(key))
            data = _body(reply, None if start is None or stop is None else stop - start)
            return HttpAnswer(_total(reply) if ranged else len(data), _etag(reply), data)

    @contextmanager
    def _answer(self, method: str, key: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        """The answer after redirects on the same server."""
        url = self._at(key)
        for _ in range(MOST_REDIRECTS):
            with _http_errors(), self._client.stream(method, url, headers=headers) as reply:
                if reply.status_code not in REDIRECTS:
                    _check(reply)
                    yield reply
                    return
                url = self._redirected(url, reply.headers.get("location", ""))
        raise UsageError(f"more than {MOST_REDIRECTS} redirects", uri=self._at(key))

    def _redirected(self, url: str, target: str) -> str:
        """Where a redirect leads, if that may be read."""
        absolute = urljoin(url, target)
        if not absolute.startswith(f"{self._base}/"):
            raise AccessError(
                "the server redirects to another one, which is not followed; name the file there", uri=url
            )
        location = resolve(absolute)
        return f"{self._base}/{quote(location.key)}"

    def _at(self, key: str) -> str:
        return f"{self._base}/{quote(key)}"


def store_base(scheme: str, host: str) -> str:
    """The server's address.

    Raises:
        UsageError: the host part holds more than a host and a port.
    """
    if any(character in host for character in "@\\?# "):
        raise UsageError(f"{host!r} is no host; write {scheme}://HOST/KEY", uri=f"{scheme}://{host}")
    return f"{parse(f'{scheme}://{host}/').scheme}://{host}"


@contextmanager
def _http_errors() -> Iterator[None]:
    try:
        yield
    except httpx2.HTTPError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


def _check(reply: httpx2.Response) -> None:
    status = reply.status_code
    if status in (404, 410):
        raise FileNotFoundError(status)
    if status in (401, 403, 407):
        raise PermissionError(f"the server answers {status}")
    if status >= 400 and status != 416:
        raise OSError(f"the server answers {status}")


def _body(reply: httpx2.Response, most_bytes: int | None) -> bytes:
    """The body, no more of it than was asked for."""
    data = bytearray()
    for piece in reply.iter_raw():
        data += piece
        if most_bytes is not None and len(data) > most_bytes:
            raise OSError(f"the server sent more than the {most_bytes} bytes asked for")
    return bytes(data)


def _total(reply: httpx2.Response) -> int:
    """Size of the whole object, from ``Content-Range: bytes 0-99/1234``."""
    total = reply.headers.get("content-range", "").rpartition("/")[2]
    if not total.isdigit():
        raise UsageError("the server does not say the file's size; copy the file to another store", uri=str(reply.url))
    return int(total)


def _etag(reply: httpx2.Response) -> str:
    return str(reply.headers.get("etag") or reply.headers.get("last-modified") or "")
