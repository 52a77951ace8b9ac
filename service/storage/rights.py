"""Access control: the places that a process may read and write, checked on the resolved name before opening.

The jobs of a service carry their user's rights in `MAGNET_RIGHTS`; other processes may access everything that the
operating system and the store allow. A right names a folder or prefix; of all rights that contain a place, the one with
the longest prefix decides. This way a folder inside a readable one can be closed:

    s3://lab             read
    s3://lab/magnet      nothing
    s3://lab/magnet/users/ada   read
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import lru_cache

from service import environment
from service.errors import AccessError, UsageError
from service.storage.uri import Location, parse


@dataclass(frozen=True, kw_only=True, slots=True)
class Right:
    """Permitted access below a folder or prefix; none if both flags are False."""

    prefix: str
    """Path or URI of the folder."""
    read: bool = False
    """Reading is permitted."""
    write: bool = False
    """Writing is permitted, and reading as well."""


class Rights:
    """Rights of a user or a job.

    Args:
        rights: single rights in any order; those with the same prefix are combined.
    """

    def __init__(self, rights: Iterable[Right]) -> None:
        self.rights = tuple(rights)
        self._by_parts: dict[tuple[str, ...], Right] = {}
        for right in self.rights:
            parts = _split_parts(canonicalize(parse(right.prefix), follow_links=True))
            known = self._by_parts.get(parts, right)
            combined = Right(prefix=right.prefix, read=right.read or known.read, write=right.write or known.write)
            self._by_parts[parts] = combined

    def allows(self, location: Location, *, write: bool = False) -> bool:
        """Return whether a resolved place may be read or, with `write`, written.

        Args:
            location: place as `canonicalize` returns it.
            write: check for writing. A right to write includes reading.
        """
        parts = _split_parts(location)
        for length in range(len(parts), 0, -1):  # the longest prefix first
            if (right := self._by_parts.get(parts[:length])) is not None:
                return right.write if write else right.read or right.write
        return False

    def excludes_part_of(self, location: Location, *, write: bool) -> bool:
        """Return whether some folder inside a resolved place may not be read or, with `write`, written."""
        parts = _split_parts(location)
        inside = (right for prefix, right in self._by_parts.items() if prefix[: len(parts)] == parts)
        return any(not (right.write if write else right.read or right.write) for right in inside)

    def require(self, uri: str, *, write: bool = False) -> Location:
        """Return the resolved place of `uri` if access to it is permitted.

        Raises:
            AccessError: it may not be read or, with `write`, written.
            UsageError: it is not a valid URI, or contains ".." in a store.
        """
        location = canonicalize(parse(uri), follow_links=True)
        if not self.allows(location, write=write):
            raise outside_error(uri, write=write)
        return location

    def to_text(self) -> str:
        """Serialise as JSON for the environment variable."""
        return json.dumps([asdict(right) for right in self.rights])


def parse_rights(text: str) -> Rights:
    """Parse the output of `Rights.to_text`.

    Raises:
        UsageError: the text is malformed.
    """
    try:
        return Rights(Right(**values) for values in json.loads(text))
    except (ValueError, TypeError) as error:
        raise UsageError("MAGNET_RIGHTS is malformed; only the service sets it, for its jobs: unset it") from error


_held: ContextVar[Rights | None] = ContextVar("held rights", default=None)


@contextmanager
def apply_rights(rights: Rights) -> Iterator[None]:
    """Apply a user's rights to everything that this thread opens inside the context.

    A check before opening would not be enough: a link may be created in between.
    """
    token = _held.set(rights)
    try:
        yield
    finally:
        _held.reset(token)


def current_rights() -> Rights | None:
    """Return the rights of this thread or else of this process; None if there are no limits of our own."""
    if (rights := _held.get()) is not None:
        return rights
    text = environment.read_rights_text()
    return None if text is None else _parse_cached(text)


def resolve(uri: str, *, write: bool = False) -> Location:
    """Follow links and check rights; the caller must open the returned place, not `uri`.

    Raises:
        AccessError: this process's rights exclude the place.
        UsageError: `uri` is not valid.
    """
    rights = current_rights()
    return canonicalize(parse(uri), follow_links=False) if rights is None else rights.require(uri, write=write)


def canonicalize(location: Location, *, follow_links: bool) -> Location:
    """Return the unique name of a place.

    Args:
        location: a file or an object.
        follow_links: follow links on disk.

    Raises:
        UsageError: the name contains a null character, or "." or ".." in a store.
    """
    if "\0" in location.key:
        raise UsageError("the name contains a null character")
    if location.scheme == "file":
        # A link gives a file a second name, and ".." is resolved in the same step.
        return Location("file", "", os.path.realpath(location.key)) if follow_links else location
    folders = [part for part in location.key.split("/") if part]
    # A client or server may resolve these parts after this check.
    if any(part in (".", "..") for part in folders):
        raise UsageError(f"'.' and '..' are not resolved in a store; write the full name instead of {location.key}")
    return location


def outside_error(uri: str, *, write: bool) -> AccessError:
    """Return the error for a place that the rights exclude."""
    access = "write" if write else "read"
    return AccessError(f"lies outside the places that this user's jobs may {access}; ask an administrator", uri=uri)


@lru_cache(maxsize=8)
def _parse_cached(text: str) -> Rights:
    # Rights are needed at every read, and resolving their prefixes asks the file system each time.
    return parse_rights(text)


def _split_parts(location: Location) -> tuple[str, ...]:
    return (location.scheme, location.host, *(part for part in location.key.split("/") if part))
