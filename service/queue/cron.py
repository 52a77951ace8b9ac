"""Cron expressions of schedules: five fields, in UTC."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from datetime import UTC, datetime

from croniter import croniter

NUM_FIELDS = 5
"""Number of fields of an expression; croniter would also take six or seven, for seconds and years."""
NUM_CHECKED = 200
"""Number of next times between which `smallest_gap_s` looks."""
YEARS = 8
"""Years within which there must be a next time: there can be eight years between two 29ths of February."""


class CronError(ValueError):
    """An expression that has no times. To act: the user who wrote it. A retry does not help."""


def require_cron(text: str) -> str:
    """Return the expression if it has five fields and a next time.

    Raises:
        CronError: it lacks them.
    """
    if len(text.split()) != NUM_FIELDS:
        raise CronError(
            f"{text!r} has {len(text.split())} fields; write five (minute, hour, day of month, month, day of week), "
            "such as '0 2 * * *' for 2:00 every night, in UTC"
        )
    next(_times(text, 0.0))
    return text


def next_time_s(text: str, after_s: float) -> float:
    """Return the first time of an expression after another time.

    Args:
        text: the expression.
        after_s: the other time in seconds since 1970.

    Returns:
        Seconds since 1970.

    Raises:
        CronError: there is no such time, or the expression is malformed.
    """
    return next(_times(text, after_s))


def smallest_gap_s(text: str, after_s: float) -> float:
    """Return the smallest gap between the next times of an expression.

    Args:
        text: the expression.
        after_s: time at which to start, in seconds since 1970.

    Returns:
        Seconds; infinite if the expression has one time only.

    Raises:
        CronError: the expression has no times.
    """
    times = list(itertools.islice(_times(text, after_s), NUM_CHECKED))
    return min((later - earlier for earlier, later in itertools.pairwise(times)), default=math.inf)


def _times(text: str, after_s: float) -> Iterator[float]:
    try:
        times = croniter(text, datetime.fromtimestamp(after_s, UTC), max_years_between_matches=YEARS)
        while True:
            yield float(times.get_next(float))
    # croniter raises all of these for malformed expressions.
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError, IndexError) as error:
        raise CronError(f"{text!r} has no times ({error}); write an expression such as '0 2 * * *'") from error
