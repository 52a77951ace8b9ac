"""Output folders of scorings: jobs of two users never share one, or one user's job could read the other's results."""

from __future__ import annotations

import json

import sqlalchemy as sa

from service.queue.job_rows import ConflictError
from service.queue.requests import Check, Score, Train, Tune
from service.queue.tables import jobs
from service.storage.rights import canonicalize
from service.storage.uri import Location, parse


def require_unshared(connection: sa.Connection, request: Check | Train | Tune | Score, owner: str) -> None:
    """Refuse a scoring whose `out` is the output folder of another user's job.

    Args:
        connection: a transaction that admits one submission at a time.
        request: the new job.
        owner: user who submits it.

    Raises:
        ConflictError: a job of another user writes to this folder.
    """
    if not isinstance(request, Score) or request.out is None:
        return
    folder = _normalise(request.out)
    others = sa.select(jobs.c.request).where(
        jobs.c.kind == "score", jobs.c.owner != owner, jobs.c.request.contains('"out": "', autoescape=True)
    )
    # The database cannot compare spellings such as a/../b or a link, so the candidates are compared here.
    for (text,) in connection.execute(others):
        if _normalise(json.loads(text)["out"]) == folder:
            raise ConflictError(f"another user's job writes to {request.out}; name your own folder, or omit `out`")


def _normalise(uri: str) -> Location:
    location = canonicalize(parse(uri), follow_links=True)
    folders = [part for part in location.key.split("/") if part]
    return Location(location.scheme, location.host, "/".join(folders))
