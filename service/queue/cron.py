"""Cron expressions of schedules: five fields, in UTC."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from datetime import UTC, datetime

from croniter import croniter

NUM_FIELDS = 5
NUM_CHECKED = 200
"""Next times between which the gaps are checked."""
YEARS = 8
"""Within which there must be a next time: 29 February may be eight years away."""


class CronError(ValueError):
    """An expression that gives no times. To act: the user who wrote it."""


def require_cron(text: str) -> str:
    """The expression, if it has five fields and a next time.

    Raises:
        CronError: it has not.
    """
    if len(text.split()) != NUM_FIELDS:
        raise CronError(
            f"{text!r} has {len(text.split())} fields; write five (minute, hour, day of month, month, day of week), "
            "such as '0 2 * * *' for two every night, in UTC"
        )
    next(_times(text, 0.0))
    return text


def next_time_s(text: str, after_s: float) -> float:
    """The first time of an expression after another time, both in seconds since 1970.

    Raises:
        CronError: there is none, or the expression is malformed.
    """
    return next(_times(text, after_s))


def smallest_gap_s(text: str, after_s: float) -> float:
    """Seconds of the smallest gap among the next times of an expression; infinite if it has one time only.

    Args:
        text: the expression.
        after_s: seconds since 1970.

    Raises:
        CronError: it gives no times.
    """
    times = list(itertools.islice(_times(text, after_s), NUM_CHECKED))
    return min((later - earlier for earlier, later in itertools.pairwise(times)), default=math.inf)


def _times(text: str, after_s: float) -> Iterator[float]:
    try:
        times = croniter(text, datetime.fromtimestamp(after_s, UTC), max_years_between_matches=YEARS)
        while True:
            yield float(times.get_next(float))
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError, IndexError) as error:  # croniter's own
        raise CronError(f"{text!r} gives no times ({error}); an example: '0 2 * * *'") from error
