"""What the commands share: the client of the user's service, and the job that a word means."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from service.api.answers import JobSummary
from service.client.client import Client, ServiceError
from service.client.connection import is_loopback
from service.environment import client_settings
from service.errors import UsageError

JOB_ID = re.compile(r"[a-z]+-[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
SHORTEST = 4
"""Characters of an abbreviated id."""
NEWEST = 500
"""Jobs among which an abbreviated id is looked for."""
LAST = ("last", "-")


def open_client() -> Client:
    """A client of the user's service."""
    known = client_settings()
    if known.token and known.url.startswith("http://") and not is_loopback(known.url):
        warn(f"{known.url} is not encrypted: the token can be read on the way; use https://")
    return Client(known.url, known.token, report=warn)


def warn(text: str) -> None:
    """Print a message on standard error."""
    print(text, file=sys.stderr, flush=True)


def job_id_of(client: Client, word: str) -> str:
    """The id of the job that a word means.

    Args:
        client: of the service.
        word: an id, its first or last characters, `last` or `-`.

    Raises:
        UsageError: it means no job, or several.
    """
    if JOB_ID.fullmatch(word):
        return word
    if word in LAST:
        jobs = client.jobs(owner=client.whoami().owner, limit=1).jobs
        if not jobs:
            raise UsageError("you have no jobs; magnet submit makes one")
        return jobs[0].id
    if len(word) < SHORTEST:
        raise UsageError(f"no job {word!r}; `magnet jobs` lists them; write at least {SHORTEST} characters of an id")
    found = [job for job in client.jobs(limit=NEWEST).jobs if _means(word, job)]
    if not found:
        raise UsageError(f"no job {word!r}; `magnet jobs` lists them")
    if len(found) > 1:
        some = ", ".join(job.id for job in found[:5])
        raise UsageError(
            f"{word!r} means {len(found)} jobs: {some}{', ...' if len(found) > 5 else ''}; write more of it"
        )
    return found[0].id


@contextmanager
def known_job(word: str) -> Iterator[None]:
    """Context in which the answer that a job does not exist names the list of jobs."""
    try:
        yield
    except ServiceError as error:
        if error.status == 404 and error.message.startswith("no job"):
            raise UsageError(f"no job {word!r}; `magnet jobs` lists them") from error
        raise


def _means(word: str, job: JobSummary) -> bool:
    return job.id.startswith(word) or job.id.endswith(word) or job.id.rpartition("-")[2].startswith(word)
