"""Who is next: fair between users, by priority among the jobs of one, nobody for ever behind.

Users take turns: the one with the fewest running jobs first, then the one whose last start is longest ago. Priorities
order a user's own jobs only, so that nobody gains by calling everything urgent, and they grow with waiting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

AGEING_S = 600.0
"""Seconds of waiting that weigh as much as one step of priority."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that could start."""

    id: str
    kind: str
    owner: str
    priority: int
    created_s: float


def chosen(
    waiting: Sequence[Waiting],
    running: Iterable[tuple[str, str]],
    last_start_s: Mapping[str, float],
    *,
    per_kind: Mapping[str, int],
    per_user: Mapping[str, int],
    now_s: float,
) -> list[Waiting]:
    """The jobs to start now, in order.

    Args:
        waiting: jobs that are due.
        running: kind and owner of each job that runs.
        last_start_s: when a job of an owner was last started; owners who had none may be missing.
        per_kind: how many of each kind may run at once.
        per_user: how many of each owner may run at once.
        now_s: the time.
    """
    pairs = list(running)
    kinds, owners = Counter(kind for kind, _ in pairs), Counter(owner for _, owner in pairs)
    served = {owner: (at_s, 0) for owner, at_s in last_start_s.items()}
    rest, result = list(waiting), list[Waiting]()
    while rest := [
        job for job in rest if kinds[job.kind] < per_kind[job.kind] and owners[job.owner] < per_user[job.owner]
    ]:
        best = min(
            rest,
            key=lambda job: (
                owners[job.owner],
                served.get(job.owner, (0.0, 0)),
                -job.priority - (now_s - job.created_s) / AGEING_S,
                job.created_s,
                job.id,
            ),
        )
        rest.remove(best)
        result.append(best)
        kinds[best.kind] += 1
        owners[best.owner] += 1
        served[best.owner] = (now_s, len(result))
    return result
