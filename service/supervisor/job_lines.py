"""A job's own lines among those that Ray puts around them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

CHATTER = re.compile(
    r"^\s*$"  # between the states of a progress bar
    r"|\s(INFO|SUCC) (cli|sdk|job_manager)\.py:\d+ -- "
    r"|^Running entrypoint for job "
    # Ray says this of actors that it makes itself; whoever runs a job can do nothing about it.
    r"|core_worker\.cc:\d+\S* Actor with class name: .* has constructor arguments in the object store"
)
"""Lines of Ray's own that tell a user nothing. Warnings and errors are none of them."""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SPEAKER = re.compile(r"^(?:\x1b\[\d+m)?\((?P<name>\w*).*? pid=\d+[^)]*\)(?:\x1b\[0m)? ")
"""The process that Ray puts before a worker's line, in colour."""


def own_lines(lines: Iterable[str]) -> Iterator[str]:
    """The job's own lines among those of ``ray job submit``, as they come, without the names of processes."""
    for line in lines:
        if not CHATTER.search(line):
            yield SPEAKER.sub("", line)
