"""Connection of the commands to the user's service, and the jobs that abbreviations name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from service.api.response_bodies import JobSummary
from service.client import Client, ServiceError
from service.client.connection import is_loopback
from service.environment import read_client_settings
from service.errors import UsageError

JOB_ID = re.compile(r"[a-z]+-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
MIN_ID_LENGTH = 4
"""Minimum number of characters of an abbreviated ID."""
NUM_SEARCHED = 500
"""Number of the newest jobs among which an abbreviated ID is searched."""
LAST = ("last", "-")
"""Names of the user's newest job."""


def open_client() -> Client:
    """Return a client of the user's service."""
    settings = read_client_settings()
    if settings.token and settings.url.startswith("http://") and not is_loopback(settings.url):
        warn(f"{settings.url} is not encrypted, so the token can be read on the network; use https://")
    return Client(settings.url, settings.token, report=warn)


def warn(text: str) -> None:
    """Print a message on standard error."""
    print(text, file=sys.stderr, flush=True)


def find_job_id(client: Client, name: str) -> str:
    """Return the ID of the job that a name means.

    Args:
        client: client of the service.
        name: an ID, its first or last characters, `last` or `-`.

    Raises:
        UsageError: the name means no job, or several.
    """
    # A full ID needs no search, and may belong to an old job.
    if JOB_ID.fullmatch(name):
        return name
    if name in LAST:
        # With the owner, since administrators otherwise get the newest job of all users.
        jobs = client.jobs(owner=client.whoami().owner, limit=1).jobs
        if not jobs:
            raise UsageError("you have no jobs; `magnet submit` submits one")
        return jobs[0].id
    if len(name) < MIN_ID_LENGTH:
        raise UsageError(
            f"no job {name!r}; `magnet jobs` lists them; write at least {MIN_ID_LENGTH} characters of an ID"
        )
    matches = [job for job in client.jobs(limit=NUM_SEARCHED).jobs if _matches(name, job)]
    if not matches:
        raise UsageError(f"no job {name!r}; `magnet jobs` lists them")
    if len(matches) > 1:
        ids = ", ".join(job.id for job in matches[:5])
        raise UsageError(
            f"{name!r} means {len(matches)} jobs: {ids}{', ...' if len(matches) > 5 else ''}; write more characters"
        )
    return matches[0].id


@contextmanager
def explain_missing_job(name: str) -> Iterator[None]:
    """Raise `UsageError` with the name that the user typed if the service does not know the job."""
    try:
        yield
    except ServiceError as error:
        if error.status == 404 and error.message.startswith("no job"):
            raise UsageError(f"no job {name!r}; `magnet jobs` lists them") from error
        raise


def _matches(name: str, job: JobSummary) -> bool:
    # The last part of an ID is random, so that its first characters are the shortest abbreviation.
    return job.id.startswith(name) or job.id.endswith(name) or job.id.rpartition("-")[2].startswith(name)
