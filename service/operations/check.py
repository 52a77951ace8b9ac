"""Outcome of a check of `magnet doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check."""

    name: str
    """Name of the part that was checked."""
    ok: bool
    """Whether the part works."""
    detail: str
    """What was found."""
    fix: str = ""
    """What to do if the check failed."""

    def format(self) -> str:
        """Return the outcome as `magnet doctor` prints it."""
        fix = "" if self.ok or not self.fix else f"\n         fix: {self.fix}"
        return f"  {'ok    ' if self.ok else 'FAILED'} {self.name}: {self.detail}{fix}"
