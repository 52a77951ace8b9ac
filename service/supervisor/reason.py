"""Why a command failed, from what it printed: the line that a person would quote."""

from __future__ import annotations

import re

from service.supervisor.job_lines import SPEAKER

LONGEST = 500
"""Characters of a reason."""
NAMED = re.compile(r"^error: ")
EXCEPTION = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Failure|Exit|Interrupt|Timeout|Warning)(?:: .*)?$"
)
"""The last line of a traceback."""
FATAL = re.compile(r"^Fatal Python error: ")
"""What Python's faulthandler prints first when native code crashes."""
RAY = re.compile(
    r"^\((?:raylet|gcs_server|autoscaler|dashboard|scheduler)\b[^)]*\)"
    r"|^\[\d{4}-\d\d-\d\d [\d:,.]+ (?:\w+ )?[A-Z] \d+ \d+\] |^\[[\d:,. -]+ [EWIFCD] \d+ \d+\] "
    r"|^\d{4}-\d\d-\d\d [\d:,.]+\s+(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \S+:\d+ -- "
)
"""Logs of Ray's own processes and libraries."""
NATIVE = re.compile(
    r"^\*\*\* (?:SIG\w+|Aborted|Segmentation)|^PC: @|^\s*@ +0x[0-9a-f]+|^#\d+ +0x[0-9a-f]+"
    r"|^\s*\S+\(\S*\) ?\[0x[0-9a-f]+\]"
    r"|^(?:Current thread|Thread) 0x[0-9a-f]+|^\s*File \".*\", line \d+|^\s*<no Python frame>"
    r"|^Extension modules: |^Stack \(most recent call first\)|^Traceback \(most recent call last\)|^\s*Binary file \""
    r"|^terminate called |^Current thread's C stack trace|^\s*\.\.\. \d+ frames|^StackTrace Information|^\s*[\^~]+\s*$"
    r"|^frame #\d+: |^During handling of the above exception|^The above exception was the direct cause"
)
"""Frames and headings of stack traces."""
BAR = re.compile(r"\d+%\||\|\s*\d+/\S+ \[|\d+it \[")
"""A progress bar of tqdm's."""


class Reason:
    """The lines of a command that may say why it ended: its own error, an exception, its last line."""

    def __init__(self) -> None:
        self._named = self._exception = self._last = ""
        self._named_goes_on = False

    def take(self, line: str) -> None:
        """Take a line that the command printed, in order."""
        text = SPEAKER.sub("", line).strip()
        goes_on, self._named_goes_on = self._named_goes_on, NAMED.match(text) is not None
        if not text or RAY.match(line) or RAY.match(text) or NATIVE.match(text) or BAR.search(text):
            return
        if NAMED.match(text):
            self._named = NAMED.sub("", text)[:LONGEST]
        elif goes_on and line.startswith("  "):  # of several problems the first
            self._named = f"{self._named}: {text}"[:LONGEST]
        elif FATAL.match(text) or (EXCEPTION.match(text) and "Warning" not in text.partition(":")[0]):
            self._exception = text[:LONGEST]
        if not line.startswith((" ", "\t")):  # those continue a line, as source code in a traceback does
            self._last = NAMED.sub("", text)[:LONGEST]

    def text(self, *, killed: bool) -> str:
        """The reason; empty if the command printed nothing of its own.

        Args:
            killed: whether a signal ended it: an error that it named before did not.
        """
        return self._last if killed else self._named or self._exception or self._last
