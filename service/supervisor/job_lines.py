"""Separates the lines of a job from those that Ray adds to its output."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

CHATTER = re.compile(
    r"^\s*$"  # between the states of a progress bar
    r"|\s(INFO|SUCC) (cli|sdk|job_manager)\.py:\d+ -- "
    r"|^Running entrypoint for job "
    # Ray reports this about actors that it makes itself; a user cannot do anything about it.
    r"|core_worker\.cc:\d+\S* Actor with class name: .* has constructor arguments in the object store"
)
"""Lines of Ray that do not help a user. Its warnings and errors are kept."""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""An escape sequence that sets the colour of a terminal."""
SPEAKER = re.compile(r"^(?:\x1b\[\d+m)?\(\w*.*? pid=\d+[^)]*\)(?:\x1b\[0m)? ")
"""The name of the process, in colour, that Ray puts before a worker's line."""


def strip_ray_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield the job's lines from the output of ``ray job submit``, without the names of processes.

    Args:
        lines: the output, line by line, as it arrives.
    """
    for line in lines:
        if not CHATTER.search(line):
            yield SPEAKER.sub("", line)
