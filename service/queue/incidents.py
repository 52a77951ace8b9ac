"""Records starts, orderly stops and errors of the service's processes, so that operators see one that keeps dying."""

from __future__ import annotations

import traceback
from collections import Counter

import sqlalchemy as sa

from service.queue.tables import Database, incidents, now_s

DISPATCHER = "dispatcher"
KEPT = 500
"""Number of incidents that are kept of each part; older ones are removed."""
LONGEST = 2000
"""Bound of an incident's text in characters."""
RESTART_WINDOW_S = 600.0
"""Seconds within which starts are counted."""
MAX_STARTS = 3
"""Number of starts without an orderly stop within `RESTART_WINDOW_S` that is tolerated; more are a crash loop."""
ERROR_WINDOW_S = 180.0
"""Seconds within which errors are counted."""
MAX_ERRORS = 3
"""Number of errors within `ERROR_WINDOW_S` that is tolerated, since they may pass by themselves."""


class Incidents:
    """The incidents of one part of the service.

    Args:
        database: the queue's.
        part: name of the part, such as `DISPATCHER`.
    """

    def __init__(self, database: Database, part: str = DISPATCHER) -> None:
        self._database, self._part = database, part

    def add(self, kind: str, text: str | None = None) -> None:
        """Record an incident, and remove old ones.

        Args:
            kind: "start", "stop" or "error".
            text: what happened.
        """
        of_part = incidents.c.part == self._part
        with self._database.writing() as connection:
            row = {"part": self._part, "kind": kind, "at_s": now_s(connection)}
            connection.execute(incidents.insert().values(row | {"text": text and text[:LONGEST].replace("\0", "")}))
            oldest = sa.select(incidents.c.seq).where(of_part).order_by(incidents.c.seq.desc()).offset(KEPT).limit(1)
            if (seq := connection.scalar(oldest)) is not None:
                connection.execute(incidents.delete().where(of_part, incidents.c.seq <= seq))

    def counts(self, window_s: float) -> Counter[str]:
        """Return the number of incidents by kind in the last `window_s` seconds."""
        with self._database.reading() as connection:
            recent = incidents.c.part == self._part, incidents.c.at_s > now_s(connection) - window_s
            query = sa.select(incidents.c.kind, sa.func.count()).where(*recent).group_by(incidents.c.kind)
            return Counter({row[0]: row[1] for row in connection.execute(query)})

    def last(self, kind: str) -> str:
        """Return the text of the newest incident of a kind; empty if there is none."""
        query = sa.select(incidents.c.text).where(incidents.c.part == self._part, incidents.c.kind == kind)
        with self._database.reading() as connection:
            return connection.scalar(query.order_by(incidents.c.seq.desc()).limit(1)) or ""

    def trouble(self) -> str | None:
        """Return why the part does not work reliably; None if it does."""
        recent = self.counts(RESTART_WINDOW_S)
        # A start without an orderly stop means that the process before it crashed or was killed.
        if (starts := recent["start"] - recent["stop"]) > MAX_STARTS:
            return (
                f"the {self._part} started {starts} times in {RESTART_WINDOW_S / 60:.0f} minutes without an orderly "
                f"stop: it keeps dying{self._last_error()}; see its log"
            )
        if (errors := self.counts(ERROR_WINDOW_S)["error"]) > MAX_ERRORS:
            return (
                f"the {self._part} failed {errors} times in {ERROR_WINDOW_S / 60:.0f} minutes"
                f"{self._last_error()}; see its log"
            )
        return None

    def _last_error(self) -> str:
        text = self.last("error")
        return f" (last error: {text})" if text else ""


def describe(error: BaseException) -> str:
    """Describe an unexpected error in one line: its type, its message, and the file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}, line {frames[-1].lineno})" if frames else ""
    message = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {message}{where}" if message else f"{type(error).__name__}{where}"
