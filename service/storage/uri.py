"""Parsing and joining of URIs and plain paths."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import quote, unquote

from service.errors import UsageError

SCHEMES = ("file", "s3", "gs", "az", "http", "https")
"""Supported URI schemes."""


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed URI."""

    scheme: str
    """One of `SCHEMES`."""
    host: str
    """Bucket, container or host; empty for files."""
    key: str
    """Name of the object in its store, without a leading slash; for files, the absolute path."""

    @property
    def uri(self) -> str:
        """URI that `parse` converts to this location."""
        if self.scheme == "file":
            return self.key
        key = quote(self.key) if self.scheme in ("http", "https") else self.key
        return f"{self.scheme}://{self.host}/{key}"


def parse(uri: str) -> Location:
    """Parse a URI or a plain path.

    Raises:
        UsageError: the scheme is not supported, the bucket or host is missing, or an http(s) URI has a query.
    """
    if "://" not in uri:
        # A plain path is not percent-decoded: "%20" may be part of a file's name.
        return Location("file", "", os.path.abspath(os.path.expanduser(uri)))
    scheme, rest = uri.split("://", 1)
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise UsageError(f"unsupported scheme {scheme!r}; use a path or one of {', '.join(SCHEMES)}", uri=uri)
    if scheme == "file":
        return Location("file", "", os.path.abspath(unquote(rest)))
    host, _, key = rest.partition("/")
    if not host:
        raise UsageError(f"no bucket or host in the URI; write {scheme}://HOST/KEY", uri=uri)
    if scheme in ("http", "https"):
        if "?" in key:
            # The error shows the host only: the query of a presigned link is a secret.
            raise UsageError("URIs with a query, such as presigned links, are not supported; use s3://", uri=host)
        key = unquote(key)
    return Location(scheme, host, key)


def join(base: str, relative: str) -> str:
    """Join `relative` to the folder `base`; return URIs and absolute paths unchanged.

    To resolve an entry of a manifest, join it to the manifest's folder: ``join(parent(manifest), uri)``.

    Raises:
        UsageError: ".." would leave the store.
    """
    if "://" in relative or os.path.isabs(relative):
        return relative
    if "://" not in base:
        return os.path.normpath(os.path.join(base, relative))
    root, _, folder = base.partition("://")
    host, _, key = folder.partition("/")
    parts: list[str] = [part for part in key.split("/") if part]
    for part in relative.split("/"):
        if part == "..":
            if not parts:
                raise UsageError(f"{relative!r} leads out of the store", uri=base)
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return f"{root}://{host}/{'/'.join(parts)}"


def parent(uri: str) -> str:
    """Return the folder that contains `uri`."""
    if "://" not in uri:
        return os.path.dirname(os.path.abspath(uri))
    return uri.rstrip("/").rpartition("/")[0]


def name(uri: str) -> str:
    """Return the last part of `uri`."""
    return parse(uri).key.rstrip("/").rpartition("/")[2]
