"""The error classes of this project, and who must act on each.

MagnetError
|-- UsageError              the user: the request is invalid (also a ValueError); a retry does not help
|   |-- NotFoundError       the user: no object exists under this URI
|   `-- AccessError         the user: access with these credentials or rights is denied
|-- StoppedError            the user: another attempt would stop at the same point; a retry does not help
|-- ProgramError            the developers: a bug in this program; a retry does not help
|-- StorageError            nobody, or the store's operator: the store failed or was too slow; a retry can help
`-- SlideError              the supplier of the slide: its bytes are unusable; other slides are not affected
    |-- UnsupportedSlideError   the format, codec or layout is not supported
    `-- SlideChangedError       the slide was replaced while it was being read; opening it again helps

Each error has the slide (`uri`), level, tile and region that it concerns, as far as they are known where it is raised;
`locate` adds what the caller knows. All errors can be pickled, so they keep these fields across processes.
"""

from __future__ import annotations

from typing import Any, Self


class MagnetError(Exception):
    """Base class of all errors that this project raises on purpose.

    Args:
        message: what was wrong and, if anybody can act, what to do.
        uri: the slide or object.
        level: pyramid level, 0 the finest.
        tile: column and row of the tile in its level.
        region: ``(s, tx, ty)`` in root coordinates.
    """

    def __init__(
        self,
        message: str,
        *,
        uri: str | None = None,
        level: int | None = None,
        tile: tuple[int, int] | None = None,
        region: tuple[float, float, float] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.uri = uri
        self.level = level
        self.tile = tile
        self.region = region

    def locate(
        self,
        *,
        uri: str | None = None,
        level: int | None = None,
        tile: tuple[int, int] | None = None,
        region: tuple[float, float, float] | None = None,
    ) -> Self:
        """Fill in the parts of the place that are still unknown, and return this error."""
        # A part that is already known was set closer to the cause.
        self.uri = uri if self.uri is None else self.uri
        self.level = level if self.level is None else self.level
        self.tile = tile if self.tile is None else self.tile
        self.region = region if self.region is None else self.region
        return self

    def __str__(self) -> str:
        place = []
        if self.uri is not None:
            place.append(self.uri)
        if self.level is not None:
            place.append(f"level {self.level}")
        if self.tile is not None:
            place.append(f"tile (column {self.tile[0]}, row {self.tile[1]})")
        if self.region is not None:
            place.append("region (s {:.6g}, x {:.6g}, y {:.6g})".format(*self.region))
        return f"{', '.join(place)}: {self.message}" if place else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # The default of exceptions passes `args` only, which would lose the place.
        state = {"uri": self.uri, "level": self.level, "tile": self.tile, "region": self.region}
        return type(self), (self.message,), state


class UsageError(MagnetError, ValueError):
    """The request is invalid; the message says what is valid."""


class NotFoundError(UsageError):
    """No object exists under this URI."""


class AccessError(UsageError):
    """The store denies these credentials access, or the user's rights exclude the place."""


class StoppedError(MagnetError):
    """A job cannot continue, and another attempt would stop at the same point."""


class ProgramError(MagnetError):
    """A bug in this program; the log has the details: report it."""


class StorageError(MagnetError):
    """The store failed or did not respond in time, in spite of retries."""


class SlideError(MagnetError):
    """The bytes of a slide are unusable."""


class UnsupportedSlideError(SlideError):
    """The format, codec or layout of a slide is not supported."""


class SlideChangedError(SlideError):
    """The slide was replaced under the same name while it was being read."""
