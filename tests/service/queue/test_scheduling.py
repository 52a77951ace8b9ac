"""Who is next: limits, turns, priorities, ageing."""

from __future__ import annotations

import random
from collections import Counter

from service.queue.scheduling import AGEING_S, Waiting, chosen

MANY = {"check": 100, "train": 100, "tune": 100, "score": 100}


def one(name: str, owner: str, *, kind: str = "check", priority: int = 0, created_s: float = 0.0) -> Waiting:
    return Waiting(name, kind, owner, priority, created_s)


def names(*jobs: Waiting, per_user: int = 1, now_s: float = 0.0, per_kind: dict[str, int] = MANY) -> list[str]:
    limits = {job.owner: per_user for job in jobs}
    found = chosen(jobs, [], {}, per_kind=per_kind, per_user=limits, now_s=now_s)
    return [job.id for job in found]


def test_limits_of_kinds_and_users_hold_whatever_waits() -> None:
    rng = random.Random(3)
    for _ in range(200):
        kinds = {kind: rng.randint(0, 3) for kind in MANY}
        jobs = [one(str(k), rng.choice("abc"), kind=rng.choice(list(MANY))) for k in range(30)]
        running = [(rng.choice(list(MANY)), rng.choice("abc")) for _ in range(rng.randint(0, 4))]
        begun = chosen(jobs, running, {}, per_kind=kinds, per_user=dict.fromkeys("abc", 2), now_s=0)
        after = [(job.kind, job.owner) for job in begun]
        for kind, count in Counter(kind for kind, _ in after).items():
            assert count + sum(k == kind for k, _ in running) <= kinds[kind]
        for owner, count in Counter(owner for _, owner in after).items():
            assert count + sum(o == owner for _, o in running) <= 2


def test_users_take_turns_though_one_came_first_with_a_hundred_urgent_jobs() -> None:
    waiting = [one(f"a{k}", "a", priority=10) for k in range(100)] + [one("b0", "b", priority=-10, created_s=9.0)]
    last: dict[str, float] = {}
    started = []
    for now_s in range(1, 5):  # one place, free again each time
        [job] = chosen(waiting, [], last, per_kind=MANY | {"check": 1}, per_user={"a": 9, "b": 9}, now_s=now_s)
        waiting.remove(job)
        last[job.owner] = now_s
        started.append(job.owner)
    assert started == ["a", "b", "a", "a"]


def test_a_users_jobs_go_by_priority_then_by_age() -> None:
    jobs = [
        one("old", "a", created_s=1.0),
        one("new", "a", created_s=2.0),
        one("urgent", "a", priority=1, created_s=3.0),
    ]
    assert names(*jobs, per_user=3) == ["urgent", "old", "new"]


def test_waiting_makes_up_for_priority() -> None:
    low, high = one("low", "a", priority=-10, created_s=0), one("high", "a", priority=10, created_s=20 * AGEING_S + 1)
    assert names(low, high, now_s=20 * AGEING_S + 1) == ["low"]


def test_a_kind_at_its_limit_holds_up_no_other() -> None:
    train, check = one("train", "a", kind="train", priority=9), one("check", "a")
    assert names(train, check, per_kind=MANY | {"train": 0}) == ["check"]


def test_each_user_has_a_limit_of_their_own() -> None:
    jobs = [one(f"{owner}{k}", owner) for owner in "abc" for k in range(3)]
    begun = chosen(jobs, [], {}, per_kind=MANY, per_user={"a": 1, "b": 2, "c": 0}, now_s=0)
    assert Counter(job.owner for job in begun) == {"a": 1, "b": 2}
