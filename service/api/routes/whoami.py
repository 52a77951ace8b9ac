"""Route that shows the caller."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.api.dependencies import Reader, get_settings, get_store, get_streams
from service.api.problems import describe_problems
from service.api.response_bodies import WhoAmI
from service.api.usage import describe_caller

router = APIRouter(prefix="/v1/whoami", tags=["tokens"], responses=describe_problems())


@router.get("")
def show_caller(request: Request, caller: Reader) -> WhoAmI:
    """The owner, scope, groups and end of the token, and the caller's limits with their usage."""
    num_followed = get_streams(request).count(caller.owner)
    return describe_caller(get_store(request).database, get_settings(request), caller, num_followed)
