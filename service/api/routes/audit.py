"""Route of the audit log."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from service.api.dependencies import MAX_INTEGER, Admin, get_store
from service.api.problems import describe_problems
from service.api.response_bodies import AuditPage, AuditRow
from service.queue import audit

LINES = "application/x-ndjson"

router = APIRouter(prefix="/v1/audit", tags=["audit"], responses=describe_problems())


@router.get("", response_model=AuditPage, responses={200: {"content": {LINES: {"schema": {"type": "string"}}}}})
def list_audit_rows(
    request: Request,
    caller: Admin,
    after: Annotated[int, Query(ge=0, le=MAX_INTEGER, description="Value of `next` in the previous page.")] = 0,
    limit: Annotated[int, Query(ge=1, le=audit.PAGE, description="Maximum number of rows.")] = 100,
    format: Annotated[
        Literal["json", "jsonl"], Query(description="json: one object; jsonl: one row per line.")
    ] = "json",
) -> Response | AuditPage:
    """Rows of the audit log, oldest first; for administrators.

    Append pages of format `jsonl` to a file to get an export, which `magnet audit --verify` checks.
    """
    rows = audit.page(get_store(request).database, after=after, limit=limit)
    if format == "jsonl":
        return Response("".join(f"{row.to_line()}\n" for row in rows), media_type=LINES)
    # A full page may be the last one; then the next page is empty.
    following = rows[-1].seq if len(rows) == limit else None
    return AuditPage(rows=[AuditRow(**asdict(row)) for row in rows], next=following)
