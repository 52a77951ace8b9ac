"""The route that says who the caller is, and what may still be used."""

from __future__ import annotations

import sqlalchemy as sa
from fastapi import APIRouter, Request

from service.api.answers import Usage, WhoAmI
from service.api.callers import Reader
from service.api.problems import documented
from service.api.routes.jobs import settings_of, store_of
from service.queue import quotas
from service.queue.grants import groups_of
from service.queue.job import ACTIVE
from service.queue.tables import jobs, recurring

router = APIRouter(prefix="/v1/whoami", tags=["tokens"], responses=documented())


@router.get("")
def whoami(request: Request, caller: Reader) -> WhoAmI:
    """Owner, scope and groups of the token, its end, and the limits in force with what of them is used."""
    settings = settings_of(request)
    limits = quotas.effective(settings, caller.owner, caller.groups)
    with store_of(request).database.reading() as connection:
        own = sa.select(jobs.c.state, sa.func.count()).where(jobs.c.owner == caller.owner).group_by(jobs.c.state)
        counts = {state: int(count) for state, count in connection.execute(own)}
        kept = sa.select(sa.func.count()).select_from(recurring).where(recurring.c.owner == caller.owner)
        num_recurring = connection.scalar(kept) or 0
    running = sum(counts.get(state, 0) for state in ACTIVE)
    return WhoAmI(
        owner=caller.owner,
        scope=caller.scope,
        groups=sorted(groups_of(settings, caller.owner, caller.groups)),
        token_id=caller.token_id,
        expires_s=caller.expires_s,
        queued=Usage(used=counts.get("queued", 0), limit=limits.max_queued),
        running=Usage(used=running, limit=limits.max_running),
        recurring=Usage(used=num_recurring, limit=limits.max_recurring),
        followed=Usage(used=request.app.state.followed.count(caller.owner), limit=settings.max_followed_per_user),
    )
