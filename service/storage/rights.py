"""Which places a process may read and write: one check, on the resolved name, before anything is opened.

A service's jobs carry their user's rights in `MAGNET_RIGHTS`; other processes may touch whatever the operating system
and the store let them. A right names a folder or prefix; of all rights above a place the longest decides, so that a
folder inside a readable one can be closed:

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
    """What may be done below a folder or prefix."""

    prefix: str
    read: bool = False
    write: bool = False


class Rights:
    """Rights of a user or a job.

    Args:
        rights: in any order.
    """

    def __init__(self, rights: Iterable[Right]) -> None:
        self.rights = tuple(rights)
        self._by_parts: dict[tuple[str, ...], Right] = {}
        for right in self.rights:
            parts = _parts(canonical(parse(right.prefix), follow_links=True))
            known = self._by_parts.get(parts, right)
            both = Right(prefix=right.prefix, read=right.read or known.read, write=right.write or known.write)
            self._by_parts[parts] = both

    def allow(self, location: Location, *, write: bool) -> bool:
        """Whether a resolved place may be read, or written.

        Args:
            location: as `canonical` returns it.
            write: False for reading. A right to write includes reading.
        """
        parts = _parts(location)
        for length in range(len(parts), 0, -1):
            if (right := self._by_parts.get(parts[:length])) is not None:
                return right.write if write else right.read or right.write
        return False

    def closed_below(self, location: Location, *, write: bool) -> bool:
        """Whether some folder inside a resolved place may not be read, or written."""
        parts = _parts(location)
        inside = (right for own, right in self._by_parts.items() if own[: len(parts)] == parts)
        return any(not (right.write if write else right.read or right.write) for right in inside)

    def require(self, uri: str, *, write: bool = False) -> Location:
        """The resolved place of `uri`.

        Raises:
            AccessError: it may not be read, or written.
            UsageError: it is no place, or leads through ".." of a store.
        """
        location = canonical(parse(uri), follow_links=True)
        if not self.allow(location, write=write):
            raise outside(uri, write=write)
        return location

    def to_text(self) -> str:
        """As the environment carries it."""
        return json.dumps([asdict(right) for right in self.rights])


def from_text(text: str) -> Rights:
    """The rights that `Rights.to_text` wrote.

    Raises:
        UsageError: it is no such text.
    """
    try:
        return Rights(Right(**values) for values in json.loads(text))
    except (ValueError, TypeError) as error:
        raise UsageError("MAGNET_RIGHTS is malformed; the service sets it for its jobs, nobody else") from error


_held: ContextVar[Rights | None] = ContextVar("held rights", default=None)


@contextmanager
def held(rights: Rights) -> Iterator[None]:
    """Context in which this thread acts for a user: all that it opens is held to the user's rights.

    A check before the opening would not do: a link may be put in place in between.
    """
    token = _held.set(rights)
    try:
        yield
    finally:
        _held.reset(token)


def in_force() -> Rights | None:
    """The rights of this thread, or of this process; None: whatever the operating system and the store allow."""
    if (rights := _held.get()) is not None:
        return rights
    text = environment.rights_text()
    return None if text is None else _cached(text)


def resolve(uri: str, *, write: bool = False) -> Location:
    """Where `uri` really lies: links followed, rights checked. What is returned is what must be opened.

    Raises:
        AccessError: this process's rights exclude it.
        UsageError: it is no place.
    """
    rights = in_force()
    return canonical(parse(uri), follow_links=False) if rights is None else rights.require(uri, write=write)


def canonical(location: Location, *, follow_links: bool) -> Location:
    """A place under its one name.

    Args:
        location: of a file or an object.
        follow_links: whether links on disk are followed.

    Raises:
        UsageError: the name holds "." or ".." in a store, or a null character.
    """
    if "\0" in location.key:
        raise UsageError("a name cannot hold a null character")
    if location.scheme == "file":
        return Location("file", "", os.path.realpath(location.key)) if follow_links else location
    folders = [part for part in location.key.split("/") if part]
    if any(part in (".", "..") for part in folders):
        raise UsageError(f"'.' and '..' are no names in a store; write the whole name: {location.key}")
    return location


def outside(uri: str, *, write: bool) -> AccessError:
    """The error of a place that the rights exclude."""
    what = "write" if write else "read"
    return AccessError(f"lies outside the places that this user's jobs may {what}; ask an administrator", uri=uri)


@lru_cache(maxsize=8)
def _cached(text: str) -> Rights:
    return from_text(text)


def _parts(location: Location) -> tuple[str, ...]:
    return (location.scheme, location.host, *(part for part in location.key.split("/") if part))
