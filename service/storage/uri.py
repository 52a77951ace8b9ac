"""Where an object lies: URIs and plain paths, taken apart and joined."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import quote, unquote

from service.errors import UsageError

SCHEMES = ("file", "s3", "gs", "az", "http", "https")
"""The schemes that can be read."""


@dataclass(frozen=True, slots=True)
class Location:
    """A URI taken apart."""

    scheme: str
    """One of `SCHEMES`."""
    host: str
    """Bucket, container or host; empty for files."""
    key: str
    """Name of the object in its store, without a leading slash; the absolute path for files."""

    @property
    def uri(self) -> str:
        """The name that `parse` takes apart into this."""
        if self.scheme == "file":
            return self.key
        key = quote(self.key) if self.scheme in ("http", "https") else self.key
        return f"{self.scheme}://{self.host}/{key}"


def parse(uri: str) -> Location:
    """Take a URI or a plain path apart.

    Raises:
        UsageError: the scheme is none of `SCHEMES`, or bucket or host are missing.
    """
    if "://" not in uri:
        return Location("file", "", os.path.abspath(os.path.expanduser(uri)))
    scheme, rest = uri.split("://", 1)
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise UsageError(f"scheme {scheme!r} cannot be read; use a path or one of {', '.join(SCHEMES)}", uri=uri)
    if scheme == "file":
        return Location("file", "", os.path.abspath(unquote(rest)))
    host, _, key = rest.partition("/")
    if not host:
        raise UsageError(f"no bucket or host in the URI; write {scheme}://HOST/KEY", uri=uri)
    if scheme in ("http", "https"):
        if "?" in key:
            raise UsageError("links with a query (presigned ones, say) cannot be read; use the s3:// URI", uri=host)
        key = unquote(key)
    return Location(scheme, host, key)


def join(base: str, relative: str) -> str:
    """`relative` as seen from the folder `base`; URIs and absolute paths stay as they are.

    To resolve what a manifest says, join it to the manifest's folder: ``join(parent(manifest), uri)``.
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
    """The folder that `uri` lies in."""
    if "://" not in uri:
        return os.path.dirname(os.path.abspath(uri))
    return uri.rstrip("/").rpartition("/")[0]


def name(uri: str) -> str:
    """The last part of `uri`."""
    return parse(uri).key.rstrip("/").rpartition("/")[2]
