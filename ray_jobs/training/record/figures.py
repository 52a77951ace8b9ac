"""Figures of a model's scores on labelled slides: ROC curve, precision against recall, confusion matrix."""

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
    """Rates when the k slides with the highest scores are called positive, for each k from 0 that splits no tie."""

    false_rate: Floats
    """Share of the negative slides called positive, from 0 to 1."""
    recall: Floats
    """Share of the positive slides called positive, from 0 to 1."""
    precision: Floats
    """Share of the slides called positive that are positive; 1 where none is called positive."""


def compute_curves(labels: ArrayLike, probabilities: ArrayLike) -> Curves:
    """Compute the curves of labels (N,), which must contain 0 and 1, and probabilities (N,)."""
    label, score = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-score, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.append(0, np.cumsum(label[order] == 1)[last_of_ties])
    calls = np.append(0, last_of_ties + 1)
    misses = calls - hits
    precision = np.divide(hits, calls, out=np.ones(len(calls)), where=calls > 0)
    return Curves(misses / misses[-1], hits / hits[-1], precision)


def count_confusion(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """Count slides by label (row: negative, positive) and call (column: negative, positive); (2, 2)."""
    label, called = np.asarray(labels), np.asarray(probabilities) >= threshold
    return np.array([[int(((label == row) & (called == bool(call))).sum()) for call in (0, 1)] for row in (0, 1)])


def draw_validation_figures(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> dict[str, Figure]:
    """Draw ROC and precision-recall curves (if both classes occur) and the confusion matrix, by file name."""
    result = {"confusion.png": _draw_confusion(count_confusion(labels, probabilities, threshold), threshold)}
    share = float(np.asarray(labels, dtype=np.float64).mean())
    if 0 < share < 1:
        rates, area = compute_curves(labels, probabilities), auroc(labels, probabilities)
        result["roc.png"] = _draw_curve(
            rates.false_rate, rates.recall, "false positive rate", "true positive rate", f"AUROC {area:.3f}"
        )
        result["precision_recall.png"] = _draw_curve(
            rates.recall, rates.precision, "recall", "precision", f"{share:.0%} of the slides are positive"
        )
    return result


def _make_axes(x: str, y: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 5), layout="constrained")  # not pyplot: it keeps all figures, and needs the main thread
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y, title=title)
    return figure, axes


def _draw_curve(x: Floats, y: Floats, x_name: str, y_name: str, title: str) -> Figure:
    figure, axes = _make_axes(x_name, y_name, title)
    axes.plot(x, y, linewidth=2)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid(alpha=0.3)
    return figure


def _draw_confusion(counts: NDArray[np.int64], threshold: float) -> Figure:
    figure, axes = _make_axes("called", "label", f"positive from probability {threshold:.3f} on")
    axes.imshow(counts, cmap="Blues", vmin=0)
    for (row, column), count in np.ndenumerate(counts):
        dark = count > counts.max() / 2  # a dark cell needs a light number
        axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black", fontsize=16)
    names = ["negative", "positive"]
    axes.set(xticks=[0, 1], xticklabels=names, yticks=[0, 1], yticklabels=names)
    return figure
