"""Which jobs start next: limits, turns, priorities, ageing."""

from __future__ import annotations

import random
from collections import Counter

from service.queue.scheduling import AGEING_S, Candidate, select_jobs

MANY = {"check": 100, "train": 100, "tune": 100, "score": 100}


def candidate(name: str, owner: str, *, kind: str = "check", priority: int = 0, created_s: float = 0.0) -> Candidate:
    return Candidate(name, kind, owner, priority, created_s)


def names(*jobs: Candidate, per_user: int = 1, now_s: float = 0.0, per_kind: dict[str, int] = MANY) -> list[str]:
    limits = {job.owner: per_user for job in jobs}
    selected = select_jobs(jobs, [], {}, per_kind=per_kind, per_user=limits, now_s=now_s)
    return [job.id for job in selected]


def test_limits_of_kinds_and_users_hold_for_any_waiting_jobs() -> None:
    rng = random.Random(3)
    for _ in range(200):
        kinds = {kind: rng.randint(0, 3) for kind in MANY}
        jobs = [candidate(str(k), rng.choice("abc"), kind=rng.choice(list(MANY))) for k in range(30)]
        running = [(rng.choice(list(MANY)), rng.choice("abc")) for _ in range(rng.randint(0, 4))]
        started = select_jobs(jobs, running, {}, per_kind=kinds, per_user=dict.fromkeys("abc", 2), now_s=0)
        after = [(job.kind, job.owner) for job in started]
        for kind, count in Counter(kind for kind, _ in after).items():
            assert count + sum(k == kind for k, _ in running) <= kinds[kind]
        for owner, count in Counter(owner for _, owner in after).items():
            assert count + sum(o == owner for _, o in running) <= 2


def test_users_take_turns_although_the_first_has_a_hundred_urgent_jobs() -> None:
    waiting = [candidate(f"a{k}", "a", priority=10) for k in range(100)] + [
        candidate("b0", "b", priority=-10, created_s=9.0)
    ]
    last: dict[str, float] = {}
    started = []
    for now_s in range(1, 5):  # one job can run, and ends before the next call
        [job] = select_jobs(waiting, [], last, per_kind=MANY | {"check": 1}, per_user={"a": 9, "b": 9}, now_s=now_s)
        waiting.remove(job)
        last[job.owner] = now_s
        started.append(job.owner)
    assert started == ["a", "b", "a", "a"]


def test_the_jobs_of_a_user_start_by_priority_then_by_age() -> None:
    jobs = [
        candidate("old", "a", created_s=1.0),
        candidate("new", "a", created_s=2.0),
        candidate("urgent", "a", priority=1, created_s=3.0),
    ]
    assert names(*jobs, per_user=3) == ["urgent", "old", "new"]


def test_waiting_raises_priority() -> None:
    low, high = (
        candidate("low", "a", priority=-10, created_s=0),
        candidate("high", "a", priority=10, created_s=20 * AGEING_S + 1),
    )
    assert names(low, high, now_s=20 * AGEING_S + 1) == ["low"]


def test_a_kind_at_its_limit_does_not_delay_other_kinds() -> None:
    train, check = candidate("train", "a", kind="train", priority=9), candidate("check", "a")
    assert names(train, check, per_kind=MANY | {"train": 0}) == ["check"]


def test_each_user_has_a_separate_limit() -> None:
    jobs = [candidate(f"{owner}{k}", owner) for owner in "abc" for k in range(3)]
    started = select_jobs(jobs, [], {}, per_kind=MANY, per_user={"a": 1, "b": 2, "c": 0}, now_s=0)
    assert Counter(job.owner for job in started) == {"a": 1, "b": 2}
