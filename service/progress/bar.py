"""A progress bar that also appends what it shows to the job's progress file."""

from __future__ import annotations

import time

from tqdm import tqdm

from service.progress.file import append_progress
from service.progress.record import Progress

RECORD_EVERY_S = 1.0
"""Seconds between two records: a bar is drawn up to ten times a second, and the supervisor reads less often."""


class ProgressBar(tqdm):
    """A bar of tqdm; its description is the activity, which the records repeat."""

    _recorded_s = -float("inf")  # on the class, since tqdm's constructor draws the bar

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Draw the bar, and write a record if it is time for one or everything is done."""
        if self.n == self.total or time.monotonic() - self._recorded_s >= RECORD_EVERY_S:
            self._recorded_s = time.monotonic()
            append_progress(self._progress())
        return super().display(msg, pos)

    def _progress(self) -> Progress:
        state = self.format_dict
        rate = state["rate"] or (state["elapsed"] and (self.n - self.initial) / state["elapsed"])  # items per second
        eta_s = float(int((self.total - self.n) / rate)) if rate else None
        return Progress(done=int(self.n), total=int(self.total), eta_s=eta_s, activity=self.desc.removesuffix(": "))
