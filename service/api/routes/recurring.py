"""Routes of watches and schedules."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Path, Request

from service.api.audit_records import make_recorder
from service.api.dependencies import Reader, Submitter, get_arrivals, get_settings, note_hidden
from service.api.problems import describe_problems
from service.api.response_bodies import RecurringView
from service.api.submissions import check_recurring
from service.queue.arrivals import Entry, Recurring

EntryId = Annotated[str, Path(pattern=r"^(watch|schedule)-[0-9a-f]{12}$", description="ID of the watch or schedule.")]

router = APIRouter(prefix="/v1/recurring", tags=["watches and schedules"], responses=describe_problems(404))


@router.post("", status_code=201)
def add_recurring(request: Request, caller: Submitter, body: Recurring) -> RecurringView:
    """Watch a folder for new slides, or submit a job on a schedule."""
    check_recurring(get_settings(request), caller, body)
    record = make_recorder(caller, "recurring.create", body.what)
    return _view(get_arrivals(request).add(body, caller.owner, caller.groups, within=record))


@router.get("")
def list_recurring(request: Request, caller: Reader) -> list[RecurringView]:
    """The caller's watches and schedules; for administrators, those of all users."""
    owner = None if caller.has_scope("admin") else caller.owner
    return [_view(entry) for entry in get_arrivals(request).all(owner)]


@router.delete("/{entry_id}", status_code=204)
def remove_recurring(request: Request, caller: Submitter, entry_id: EntryId) -> None:
    """Remove a watch or schedule. Jobs that it has submitted continue."""
    entry = get_arrivals(request).entry(entry_id)
    with note_hidden(request):
        caller.require_owner(entry.owner, f"watch or schedule {entry_id}")
    get_arrivals(request).remove(entry_id, within=make_recorder(caller, "recurring.delete"))


def _view(entry: Entry) -> RecurringView:
    values = {name: getattr(entry, name) for name in ("id", "owner", "what", "next_s", "note", "disabled")}
    try:
        body = json.loads(entry.body)
    except ValueError:
        body = None  # the dispatcher disables a damaged entry; the list must still show the others
    return RecurringView.model_validate(values | {"body": body if isinstance(body, dict) else {}})
