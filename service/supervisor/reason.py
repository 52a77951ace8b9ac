"""Finds out from its output why a command ended that did not record its error: it crashed or was killed."""

from __future__ import annotations

import re

from service.supervisor.job_lines import SPEAKER

LONGEST = 500
"""Bound of a reason in characters."""
ERROR_PREFIX = "error: "
"""What commands print before an error."""
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
"""Log lines of Ray's own processes and libraries."""
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
"""A progress bar of tqdm."""


class Reason:
    """Collects the lines of a command that may say why it ended: an exception, and the last line."""

    def __init__(self) -> None:
        self._exception = self._last = ""

    def take(self, line: str) -> None:
        """Take the next line that the command printed."""
        text = SPEAKER.sub("", line).strip()
        if not text or RAY.match(line) or RAY.match(text) or NATIVE.match(text) or BAR.search(text):
            return
        if FATAL.match(text) or (EXCEPTION.match(text) and "Warning" not in text.partition(":")[0]):
            self._exception = text[:LONGEST]
        # An indented line continues the one before, as source code in a traceback does.
        if not line.startswith((" ", "\t")):
            self._last = text.removeprefix(ERROR_PREFIX)[:LONGEST]

    def text(self, *, killed: bool) -> str:
        """Return the reason; empty if the command printed no line of its own.

        Args:
            killed: whether a signal ended the command. An exception that it printed before is then not the reason.
        """
        return self._last if killed else self._exception or self._last
