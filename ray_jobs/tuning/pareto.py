"""What trials reached for what they cost: the front of AUROC against last patches and bytes per slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended, at its best epoch."""

    trial: str
    schedule: str
    num_patches: int
    status: str
    """"complete", "stopped early", "does not fit", "failed"."""
    reason: str = ""
    auroc: float | None = None
    bytes_per_slide: float | None = None
    objective: float | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A trial with numbers to compare."""

    trial: str
    schedule: str
    num_patches: int
    bytes_per_slide: float
    auroc: float


def scored(outcomes: Sequence[Outcome]) -> list[Scored]:
    """Those of them that have numbers."""
    return [
        Scored(one.trial, one.schedule, one.num_patches, one.bytes_per_slide, one.auroc)
        for one in outcomes
        if one.auroc is not None and one.bytes_per_slide is not None
    ]


def front(points: Sequence[Scored]) -> list[Scored]:
    """The points that no other one beats: at least as good in AUROC, patches and bytes, and better in one of them."""

    def beaten(by: Scored, one: Scored) -> bool:
        better = (by.auroc - one.auroc, one.num_patches - by.num_patches, one.bytes_per_slide - by.bytes_per_slide)
        return min(better) >= 0 and max(better) > 0

    return [one for one in points if not any(beaten(by, one) for by in points)]


def table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """All trials, the best first, with a column that says which are on the front."""
    best = {one.trial for one in front(scored(outcomes))}
    frame = pd.DataFrame([asdict(one) | {"on_front": one.trial in best} for one in outcomes])
    return frame.sort_values("objective", ascending=False, na_position="last", ignore_index=True)


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """Two panels: AUROC over last patches and over megabytes per slide, the front named by its schedules."""
    points = scored(outcomes)
    best = front(points)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, "last patches per slide", [(one, float(one.num_patches)) for one in points], best)
    _panel(right, "MB read per slide", [(one, one.bytes_per_slide / 1e6) for one in points], best)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("validation AUROC")
    figure.suptitle(f"{len(points)} trials, {len(best)} of them on the front")
    return figure


def _panel(axes: Axes, cost_name: str, costs: Sequence[tuple[Scored, float]], best: Sequence[Scored]) -> None:
    axes.scatter([x for _, x in costs], [one.auroc for one, _ in costs], color="0.7", s=30, label="trials")
    on_front = sorted((x, one.auroc, one.schedule) for one, x in costs if one in best)
    axes.scatter([x for x, _, _ in on_front], [y for _, y, _ in on_front], color="C0", s=45, label="front", zorder=3)
    axes.set(xlabel=cost_name)
    axes.margins(0.12)
    axes.autoscale_view()  # settles the scales, which the transform below needs
    named: list[tuple[float, float]] = []
    for x, y, schedule in sorted(on_front, key=lambda one: -one[1]):
        place = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        if all(abs(place[0] - left) > 0.1 or abs(place[1] - low) > 0.05 for left, low in named):  # else unreadable
            axes.annotate(schedule, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
            named.append((place[0], place[1]))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
