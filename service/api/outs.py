"""Folders that scorings write to: two users' jobs never share one, or one could read the other's results by its job."""

from __future__ import annotations

import json

import sqlalchemy as sa

from service.queue.job_rows import ConflictError
from service.queue.requests import Check, Score, Train, Tune
from service.queue.tables import jobs
from service.storage.rights import canonical
from service.storage.uri import Location, parse


def require_free(connection: sa.Connection, request: Check | Train | Tune | Score, owner: str) -> None:
    """Refuse a scoring whose `out` is another user's.

    Args:
        connection: of a transaction that lets in one submission at a time.
        request: of the new job.
        owner: of the new job.

    Raises:
        ConflictError: a job of another user writes there.
    """
    if not isinstance(request, Score) or request.out is None:
        return
    wanted = _place(request.out)
    others = sa.select(jobs.c.request).where(
        jobs.c.kind == "score", jobs.c.owner != owner, jobs.c.request.contains('"out": "', autoescape=True)
    )
    for (text,) in connection.execute(others):
        if _place(json.loads(text)["out"]) == wanted:
            raise ConflictError(f"another user's job writes to {request.out}; name a folder of your own, or leave out")


def _place(uri: str) -> Location:
    location = canonical(parse(uri), follow_links=True)
    folders = [part for part in location.key.split("/") if part]
    return Location(location.scheme, location.host, "/".join(folders))
