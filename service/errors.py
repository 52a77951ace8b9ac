"""What can go wrong, and who must act.

MagnetError
|-- UsageError              the user: what was asked for cannot be had (also a ValueError); a retry does not help
|   |-- NotFoundError       the user: nothing lies under this URI
|   `-- AccessError         the user: the store refuses these credentials
|-- StoppedError            the user: a job came to a point that the same again would come to; a retry does not help
|-- ProgramError            the developers: an error of this program; a retry does not help
|-- StorageError            nobody, or the store's operator: the store failed or was too slow; a retry can help
`-- SlideError              whoever made the slide: its bytes cannot be used; other slides are not concerned
    |-- UnsupportedSlideError   the format, codec or layout is none that can be read
    `-- SlideChangedError       the slide was replaced while it was being read; opening it anew helps

Each error knows the slide (`uri`), level, tile and region it concerns, as far as they are known where it is raised;
`located` adds what the caller knows. All survive pickling, so they cross process boundaries whole.
"""

from __future__ import annotations

from typing import Any, Self


class MagnetError(Exception):
    """Base of all errors that this project raises on purpose.

    Args:
        message: what was wrong and, where somebody can act, what to do.
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

    def located(
        self,
        *,
        uri: str | None = None,
        level: int | None = None,
        tile: tuple[int, int] | None = None,
        region: tuple[float, float, float] | None = None,
    ) -> Self:
        """This error with those parts of its place filled in that it does not know yet."""
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
        state = {"uri": self.uri, "level": self.level, "tile": self.tile, "region": self.region}
        return type(self), (self.message,), state


class UsageError(MagnetError, ValueError):
    """What was asked for cannot be had; the message says what would do."""


class NotFoundError(UsageError):
    """Nothing lies under this URI."""


class AccessError(UsageError):
    """The store does not let these credentials do this."""


class StoppedError(MagnetError):
    """A job came to a point from which it cannot go on, and to which the same again would come."""


class ProgramError(MagnetError):
    """An error of this program, as its log shows: report it."""


class StorageError(MagnetError):
    """The store failed, or did not answer in time, in spite of retries."""


class SlideError(MagnetError):
    """The bytes of a slide cannot be used."""


class UnsupportedSlideError(SlideError):
    """A format, codec or layout that cannot be read."""


class SlideChangedError(SlideError):
    """The slide was replaced under the same name while it was being read."""
