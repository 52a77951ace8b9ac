"""The route of the audit log, for administrators."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from service.api.answers import AuditPage, AuditRow
from service.api.callers import Admin
from service.api.problems import documented
from service.api.routes.jobs import BIGGEST, store_of
from service.queue import audit

LINES = "application/x-ndjson"

router = APIRouter(prefix="/v1/audit", tags=["audit"], responses=documented())


@router.get("", response_model=AuditPage, responses={200: {"content": {LINES: {"schema": {"type": "string"}}}}})
def listed(
    request: Request,
    caller: Admin,
    after: Annotated[int, Query(ge=0, le=BIGGEST, description="`next` of the page before")] = 0,
    limit: Annotated[int, Query(ge=1, le=audit.PAGE)] = 100,
    format: Annotated[Literal["json", "jsonl"], Query(description="one object, or a row a line")] = "json",
) -> Response | AuditPage:
    """Rows of the audit log, oldest first. Rows of format `jsonl`, appended to a file, are an export to verify."""
    rows = audit.page(store_of(request).database, after=after, limit=limit)
    if format == "jsonl":
        return Response("".join(f"{row.to_line()}\n" for row in rows), media_type=LINES)
    following = rows[-1].seq if len(rows) == limit else None
    return AuditPage(rows=[AuditRow(**asdict(row)) for row in rows], next=following)
