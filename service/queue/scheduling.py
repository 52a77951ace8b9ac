"""Decides which jobs start next: fair between users, by priority among the jobs of one user, and nobody waits for ever.

Users take turns: the one with the fewest running jobs first, then the one whose last start is longest ago. Priorities
order the jobs of one user only, so that nobody gains by submitting everything as urgent, and they grow with waiting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

AGEING_S = 600.0
"""Seconds of waiting that count as much as one step of priority."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job that could start."""

    id: str
    """Id of the job."""
    kind: str
    """Kind of the job, such as "train"."""
    owner: str
    """User who submitted it."""
    priority: int
    """Priority among the jobs of this user; higher is earlier."""
    created_s: float
    """Time of the submission in seconds since 1970."""


def select_jobs(
    candidates: Sequence[Candidate],
    running: Iterable[tuple[str, str]],
    last_start_s: Mapping[str, float],
    *,
    per_kind: Mapping[str, int],
    per_user: Mapping[str, int],
    now_s: float,
) -> list[Candidate]:
    """Select the jobs to start now.

    Args:
        candidates: jobs that are due.
        running: kind and owner of each job that runs.
        last_start_s: time of the last start of a job by owner; may lack owners who had none.
        per_kind: bound of the number of running jobs by kind.
        per_user: bound of the number of running jobs by owner.
        now_s: current time in seconds since 1970, as all times here.

    Returns:
        The jobs in the order in which they start.
    """
    pairs = list(running)
    kinds, owners = Counter(kind for kind, _ in pairs), Counter(owner for _, owner in pairs)
    # The second number orders the starts of this call, which all have the same time.
    last_turn = {owner: (at_s, 0) for owner, at_s in last_start_s.items()}
    rest, selected = list(candidates), list[Candidate]()
    while rest := [
        job for job in rest if kinds[job.kind] < per_kind[job.kind] and owners[job.owner] < per_user[job.owner]
    ]:
        best = min(
            rest,
            key=lambda job: (
                owners[job.owner],
                last_turn.get(job.owner, (0.0, 0)),
                -job.priority - (now_s - job.created_s) / AGEING_S,
                job.created_s,
                job.id,
            ),
        )
        rest.remove(best)
        selected.append(best)
        kinds[best.kind] += 1
        owners[best.owner] += 1
        last_turn[best.owner] = (now_s, len(selected))
    return selected
