"""What a caller may use, and how much of it is used."""

from __future__ import annotations

import sqlalchemy as sa

from service.api.access import Caller
from service.api.response_bodies import Usage, WhoAmI
from service.queue import quotas
from service.queue.grants import groups_of
from service.queue.job import ACTIVE
from service.queue.tables import Database, jobs, recurring
from service.settings.service import ServiceSettings


def describe_caller(database: Database, settings: ServiceSettings, caller: Caller, num_followed: int) -> WhoAmI:
    """Return the caller's token, groups, limits and usage.

    Args:
        database: the queue's database.
        settings: service settings.
        caller: the caller.
        num_followed: number of streams that the caller follows.
    """
    limits = quotas.effective_limits(settings, caller.owner, caller.groups)
    with database.reading() as connection:
        by_state = sa.select(jobs.c.state, sa.func.count()).where(jobs.c.owner == caller.owner).group_by(jobs.c.state)
        counts = {state: int(count) for state, count in connection.execute(by_state)}
        entries = sa.select(sa.func.count()).select_from(recurring).where(recurring.c.owner == caller.owner)
        num_recurring = connection.scalar(entries) or 0
    # A job that starts already occupies a place.
    num_running = sum(counts.get(state, 0) for state in ACTIVE)
    return WhoAmI(
        owner=caller.owner,
        scope=caller.scope,
        groups=sorted(groups_of(settings, caller.owner, caller.groups)),
        token_id=caller.token_id,
        expires_s=caller.expires_s,
        queued=Usage(used=counts.get("queued", 0), limit=limits.max_queued),
        running=Usage(used=num_running, limit=limits.max_running),
        recurring=Usage(used=num_recurring, limit=limits.max_recurring),
        followed=Usage(used=num_followed, limit=settings.max_followed_per_user),
    )
