"""How a model scores labelled slides, drawn: ROC, precision against recall, confusion at its threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from magnet.metrics import auroc

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curves:
    """What follows from calling positive the k slides of the highest scores, for each k that splits no tie, from 0."""

    false_rate: Floats
    """Share of the negatives called positive, growing from 0 to 1."""
    recall: Floats
    """Share of the positives called positive."""
    precision: Floats
    """Share of the calls that are right; 1 where there is none."""


def curves(labels: ArrayLike, probabilities: ArrayLike) -> Curves:
    """Both curves of labels (N,), 0 and 1 both among them, and probabilities (N,)."""
    label, score = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-score, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.append(0, np.cumsum(label[order] == 1)[last_of_ties])
    calls = np.append(0, last_of_ties + 1)
    misses = calls - hits
    precision = np.divide(hits, calls, out=np.ones(len(calls)), where=calls > 0)
    return Curves(misses / misses[-1], hits / hits[-1], precision)


def confusion(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """Slides by label (row: negative, positive) and call (column: negative, positive), (2, 2)."""
    label, called = np.asarray(labels), np.asarray(probabilities) >= threshold
    return np.array([[int(((label == row) & (called == bool(call))).sum()) for call in (0, 1)] for row in (0, 1)])


def figures(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> dict[str, Figure]:
    """ROC and precision-recall (where both classes are there) and confusion, by the names of their files."""
    result = {"confusion.png": _confusion(confusion(labels, probabilities, threshold), threshold)}
    share = float(np.asarray(labels, dtype=np.float64).mean())
    if 0 < share < 1:
        found = curves(labels, probabilities)
        area = auroc(labels, probabilities)
        result["roc.png"] = _curve(
            found.false_rate, found.recall, "false positive rate", "true positive rate", f"AUROC {area:.3f}"
        )
        result["precision_recall.png"] = _curve(
            found.recall, found.precision, "recall", "precision", f"{share:.0%} of the slides are positive"
        )
    return result


def _axes(x: str, y: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 5), layout="constrained")  # no pyplot: it keeps figures, and wants the main thread
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y, title=title)
    return figure, axes


def _curve(x: Floats, y: Floats, x_name: str, y_name: str, title: str) -> Figure:
    figure, axes = _axes(x_name, y_name, title)
    axes.plot(x, y, linewidth=2)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid(alpha=0.3)
    return figure


def _confusion(counts: NDArray[np.int64], threshold: float) -> Figure:
    figure, axes = _axes("called", "label", f"positive from probability {threshold:.3f} on")
    axes.imshow(counts, cmap="Blues", vmin=0)
    for (row, column), count in np.ndenumerate(counts):
        dark = count > counts.max() / 2
        axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black", fontsize=16)
    names = ["negative", "positive"]
    axes.set(xticks=[0, 1], xticklabels=names, yticks=[0, 1], yticklabels=names)
    return figure
