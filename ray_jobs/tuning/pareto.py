"""Compares the scores of trials with their costs: the Pareto front of AUROC, last patches and bytes per slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended, with the metrics of its best epoch."""

    trial: str
    """Id of the trial."""
    schedule: str
    """Regions per parent, layer by layer, as "3,2,3"."""
    num_patches: int
    """Number of last patches per slide."""
    status: str
    """"complete", "stopped early", "does not fit" or "failed"."""
    reason: str = ""
    """Why it does not fit or failed; empty otherwise."""
    auroc: float | None = None
    """Validation AUROC; None if no epoch was completed, as for the fields below."""
    bytes_per_slide: float | None = None
    """Mean of the bytes read for a slide."""
    objective: float | None = None
    """Value that the search maximises."""


@dataclass(frozen=True, slots=True)
class Point:
    """A trial that can be compared with others."""

    trial: str
    """Id of the trial."""
    schedule: str
    """Regions per parent, layer by layer, as "3,2,3"."""
    num_patches: int
    """Number of last patches per slide."""
    bytes_per_slide: float
    """Mean of the bytes read for a slide."""
    auroc: float
    """Validation AUROC."""


def make_points(outcomes: Sequence[Outcome]) -> list[Point]:
    """Return the trials that have a score."""
    return [
        Point(outcome.trial, outcome.schedule, outcome.num_patches, outcome.bytes_per_slide, outcome.auroc)
        for outcome in outcomes
        if outcome.auroc is not None and outcome.bytes_per_slide is not None
    ]


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one dominates.

    A point dominates another one if it is at least as good in AUROC, patches and bytes, and better in one of them.
    """

    def dominates(a: Point, b: Point) -> bool:
        gain = (a.auroc - b.auroc, b.num_patches - a.num_patches, b.bytes_per_slide - a.bytes_per_slide)
        return min(gain) >= 0 and max(gain) > 0

    return [point for point in points if not any(dominates(other, point) for other in points)]


def make_table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Return all trials, the best first; a column shows which of them are on the front."""
    on_front = {point.trial for point in pareto_front(make_points(outcomes))}
    frame = pd.DataFrame([asdict(outcome) | {"on_front": outcome.trial in on_front} for outcome in outcomes])
    return frame.sort_values("objective", ascending=False, na_position="last", ignore_index=True)


def draw_front(outcomes: Sequence[Outcome]) -> Figure:
    """Draw AUROC against last patches and against megabytes per slide; the front is labelled with its schedules."""
    points = make_points(outcomes)
    front = pareto_front(points)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_panel(left, "last patches per slide", [(point, float(point.num_patches)) for point in points], front)
    _draw_panel(right, "MB read per slide", [(point, point.bytes_per_slide / 1e6) for point in points], front)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("validation AUROC")
    figure.suptitle(f"{len(points)} trials, {len(front)} of them on the front")
    return figure


def _draw_panel(axes: Axes, cost_name: str, costs: Sequence[tuple[Point, float]], front: Sequence[Point]) -> None:
    """Draw all points against one cost."""
    axes.scatter([x for _, x in costs], [point.auroc for point, _ in costs], color="0.7", s=30, label="trials")
    on_front = sorted((x, point.auroc, point.schedule) for point, x in costs if point in front)
    axes.scatter([x for x, _, _ in on_front], [y for _, y, _ in on_front], color="C0", s=45, label="front", zorder=3)
    axes.set(xlabel=cost_name)
    axes.margins(0.12)
    axes.autoscale_view()  # sets the scales, which the transform below needs
    labelled: list[tuple[float, float]] = []
    for x, y, schedule in sorted(on_front, key=lambda row: -row[1]):
        place = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        # Labels that overlap could not be read: of close points, only the best has one.
        if all(abs(place[0] - left) > 0.1 or abs(place[1] - low) > 0.05 for left, low in labelled):
            axes.annotate(schedule, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
            labelled.append((place[0], place[1]))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
