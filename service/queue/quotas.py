"""The number of jobs, watches and schedules that a user may have."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from service.queue.grants import groups_of
from service.settings.service import Quota, ServiceSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of one user."""

    max_queued: int
    """Bound of the number of jobs that wait."""
    max_running: int
    """Bound of the number of jobs that run at once."""
    max_recurring: int
    """Bound of the number of watches and schedules."""


def effective_limits(settings: ServiceSettings, owner: str, groups: Collection[str] = ()) -> Limits:
    """Return the limits of a user.

    Each limit is that of the user's own quota, else the smallest among the quotas of the user's groups, else the
    service's `...per_user` setting.

    Args:
        settings: of the service.
        owner: the user.
        groups: groups of the user that a login named; those of the settings are added.
    """
    of_user = settings.quotas.get(owner, Quota())
    names = sorted(groups_of(settings, owner, groups))
    of_groups = [settings.quotas[f"@{name}"] for name in names if f"@{name}" in settings.quotas]

    def limit(name: str, default: int) -> int:
        value: int | None = getattr(of_user, name)
        if value is not None:
            return value
        return min((v for quota in of_groups if (v := getattr(quota, name)) is not None), default=default)

    return Limits(
        max_queued=limit("max_queued", settings.max_queued_per_user),
        max_running=limit("max_running", settings.max_running_per_user),
        max_recurring=limit("max_recurring", settings.max_recurring_per_user),
    )
