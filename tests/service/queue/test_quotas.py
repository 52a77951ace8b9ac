"""The limits of a user: the user's own quota, the strictest group, the service's default."""

from __future__ import annotations

from service.queue.quotas import Limits, effective_limits
from service.settings.service import Quota, ServiceSettings

SETTINGS = ServiceSettings(
    storage="/s",
    groups={"lab": ("ada", "bob"), "guests": ("bob",)},
    quotas={
        "@lab": Quota(max_queued=50, max_running=3),
        "@guests": Quota(max_queued=5, max_running=9),
        "bob": Quota(max_running=0),
        "guests": Quota(max_queued=1),  # a user with that name, not the group
    },
    max_queued_per_user=100,
    max_running_per_user=4,
    max_recurring_per_user=7,
)


def test_a_user_without_a_quota_has_the_services_limits() -> None:
    assert effective_limits(SETTINGS, "eve") == Limits(max_queued=100, max_running=4, max_recurring=7)


def test_members_of_groups_have_the_strictest_limit() -> None:
    assert effective_limits(SETTINGS, "ada") == Limits(max_queued=50, max_running=3, max_recurring=7)
    assert effective_limits(SETTINGS, "ada", ["guests"]).max_queued == 5
    assert effective_limits(SETTINGS, "ada", ["guests"]).max_running == 3


def test_the_own_quota_of_a_user_wins_where_it_has_a_value() -> None:
    assert effective_limits(SETTINGS, "bob") == Limits(max_queued=5, max_running=0, max_recurring=7)
