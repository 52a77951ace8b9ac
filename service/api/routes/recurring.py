"""Routes of watches and schedules."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Path, Request

from service.api.access import Caller
from service.api.answers import RecurringView
from service.api.callers import Reader, Submitter, hidden
from service.api.problems import documented
from service.api.routes.jobs import recorded, require_alias, rights_of
from service.errors import UsageError
from service.queue.allowed import check_allowed, require_allowed
from service.queue.arrivals import Arrivals, Entry, Recurring, Watch
from service.queue.requests import Score
from service.settings.service import ServiceSettings

EntryId = Annotated[str, Path(pattern=r"^(watch|schedule)-[0-9a-f]{12}$")]

router = APIRouter(prefix="/v1/recurring", tags=["watches and schedules"], responses=documented(404))


@router.post("", status_code=201)
def add(request: Request, caller: Submitter, body: Recurring) -> RecurringView:
    """Watch a folder, or submit a job on a schedule."""
    settings: ServiceSettings = request.app.state.settings
    rights = rights_of(settings, caller)
    if isinstance(body, Watch):
        require_allowed(body.folder, rights)
        if body.folder.startswith(("http://", "https://")):
            raise UsageError("an http(s) server cannot be listed; use s3://, gs://, az:// or a path", uri=body.folder)
        check_allowed(Score(manifest=body.folder, model=body.model), rights)
    else:
        require_alias(caller, body.job)
        check_allowed(body.job, rights)
        if isinstance(body.job, Score) and body.job.out is not None:
            raise UsageError("a scheduled scoring has no out: each of its jobs gets a folder of its own")
    record = recorded(caller, "recurring.create", body.what)
    return _view(_arrivals(request).add(body, caller.owner, caller.groups, within=record))


@router.get("")
def listed(request: Request, caller: Reader) -> list[RecurringView]:
    """Watches and schedules: one's own, or for admins everybody's."""
    return [_view(entry) for entry in _arrivals(request).all(None if caller.may("admin") else caller.owner)]


@router.delete("/{entry_id}", status_code=204)
def remove(request: Request, caller: Submitter, entry_id: EntryId) -> None:
    """End a watch or schedule; jobs that it made go on."""
    _found(request, caller, entry_id)
    _arrivals(request).remove(entry_id, within=recorded(caller, "recurring.delete"))


def _found(request: Request, caller: Caller, entry_id: str) -> Entry:
    entry = _arrivals(request).entry(entry_id)
    with hidden(request):
        caller.require_owner(entry.owner, f"watch or schedule {entry_id}")
    return entry


def _arrivals(request: Request) -> Arrivals:
    arrivals: Arrivals = request.app.state.arrivals
    return arrivals


def _view(entry: Entry) -> RecurringView:
    values = {name: getattr(entry, name) for name in ("id", "owner", "what", "next_s", "note", "disabled")}
    try:
        body = json.loads(entry.body)
    except ValueError:
        body = None  # a damaged row disables itself, and the others are still listed
    return RecurringView.model_validate(values | {"body": body if isinstance(body, dict) else {}})
