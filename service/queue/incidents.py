"""Starts, orderly stops and errors of the service's processes, from which an operator sees one that keeps dying."""

from __future__ import annotations

import traceback
from collections import Counter

import sqlalchemy as sa

from service.queue.tables import Database, incidents, now_s

DISPATCHER = "dispatcher"
KEPT = 500
"""Incidents of each part; older ones are removed."""
LONGEST = 2000
"""Characters of an incident's text."""
RESTART_WINDOW_S = 600.0
MOST_STARTS = 3
"""Starts without an orderly stop within `RESTART_WINDOW_S` that are no loop of crashes."""
ERROR_WINDOW_S = 180.0
MOST_ERRORS = 3
"""Errors within `ERROR_WINDOW_S` that may pass by themselves."""


class Incidents:
    """The incidents of one part of the service.

    Args:
        database: the queue's.
        part: such as `DISPATCHER`.
    """

    def __init__(self, database: Database, part: str = DISPATCHER) -> None:
        self._database, self._part = database, part

    def add(self, kind: str, text: str | None = None) -> None:
        """Note an incident.

        Args:
            kind: start, stop or error.
            text: what happened.
        """
        own = incidents.c.part == self._part
        with self._database.writing() as connection:
            row = {"part": self._part, "kind": kind, "at_s": now_s(connection)}
            connection.execute(incidents.insert().values(row | {"text": text and text[:LONGEST].replace("\0", "")}))
            oldest = sa.select(incidents.c.seq).where(own).order_by(incidents.c.seq.desc()).offset(KEPT).limit(1)
            if (seq := connection.scalar(oldest)) is not None:
                connection.execute(incidents.delete().where(own, incidents.c.seq <= seq))

    def counts(self, window_s: float) -> Counter[str]:
        """Incidents by kind in the last `window_s` seconds."""
        with self._database.reading() as connection:
            recent = incidents.c.part == self._part, incidents.c.at_s > now_s(connection) - window_s
            query = sa.select(incidents.c.kind, sa.func.count()).where(*recent).group_by(incidents.c.kind)
            return Counter({row[0]: row[1] for row in connection.execute(query)})

    def last(self, kind: str) -> str:
        """Text of the newest incident of a kind; empty if there is none."""
        query = sa.select(incidents.c.text).where(incidents.c.part == self._part, incidents.c.kind == kind)
        with self._database.reading() as connection:
            return connection.scalar(query.order_by(incidents.c.seq.desc()).limit(1)) or ""

    def trouble(self) -> str | None:
        """Why the part cannot be relied on; None if it can."""
        recent = self.counts(RESTART_WINDOW_S)
        if (starts := recent["start"] - recent["stop"]) > MOST_STARTS:
            return (
                f"the {self._part} started {starts} times in {RESTART_WINDOW_S / 60:.0f} minutes without an orderly "
                f"stop: it keeps dying{self._last_error()}; see its log"
            )
        if (errors := self.counts(ERROR_WINDOW_S)["error"]) > MOST_ERRORS:
            return (
                f"the {self._part} failed {errors} times in {ERROR_WINDOW_S / 60:.0f} minutes"
                f"{self._last_error()}; see its log"
            )
        return None

    def _last_error(self) -> str:
        text = self.last("error")
        return f" (last error: {text})" if text else ""


def describe(error: BaseException) -> str:
    """An unexpected error in one line: its type, what it says, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}, line {frames[-1].lineno})" if frames else ""
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said}{where}" if said else f"{type(error).__name__}{where}"
