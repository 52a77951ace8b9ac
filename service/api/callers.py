"""Dependencies of the routes: the caller that the gate has resolved, and the scope that a route needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from service.api.access import Caller, HiddenError, NoTokenError, Scope

CALLER = "magnet.caller"
"""Key of the ASGI scope under which the gate leaves the caller."""

_BEARER = HTTPBearer(auto_error=False, description="A token of this service.")  # documents it; the gate checks


HIDDEN = "magnet.hidden"
"""Key of the ASGI scope that is set where an object of another user was asked for."""


@contextmanager
def hidden(request: Request) -> Iterator[None]:
    """Context in which a refusal that hides another user's object is noted, for the audit log."""
    try:
        yield
    except HiddenError:
        request.scope[HIDDEN] = True
        raise


def caller_with(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """A dependency that returns the caller, who has this scope."""

    async def caller(request: Request, _: Annotated[object, Depends(_BEARER)] = None) -> Caller:
        found = request.scope.get(CALLER)
        if not isinstance(found, Caller):
            raise NoTokenError("no token was sent")
        found.require_scope(scope)
        return found

    return caller


Reader = Annotated[Caller, Depends(caller_with("read"))]
Submitter = Annotated[Caller, Depends(caller_with("submit"))]
Promoter = Annotated[Caller, Depends(caller_with("promote"))]
Admin = Annotated[Caller, Depends(caller_with("admin"))]
