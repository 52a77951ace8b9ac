"""Draw `zoom.svg`, the figure of the page "How a zoom works".

    python docs/figures/draw_zoom.py

The slide is made up: an outline of tissue, dots for nuclei, three dark spots. Every view is the same drawing in a
smaller square, as a view of a real slide is the same tissue at a higher power.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle
from numpy.typing import NDArray

OUT = Path(__file__).with_name("zoom.svg")
INK, MUTED, GLASS, TISSUE, NUCLEUS, SPOT = "#222222", "#6b6b6b", "#fbf7fa", "#f2c4d6", "#7a4a9e", "#c98bb8"
LAYER_COLOURS = ("#222222", "#0b6e4f", "#c2410c")
"""Of the root, of the regions of layer 1 and of the last patches."""

SPOTS = ((-0.42, 0.28, 0.17), (0.38, 0.36, 0.14), (0.12, -0.42, 0.15))
"""Centre and radius of each dark spot, in root coordinates."""
REGIONS = ((0.24, -0.40, 0.28), (0.24, 0.40, 0.34), (0.24, 0.12, -0.40))
"""Half-side and centre of the regions of layer 1, in root coordinates."""
CHILDREN = ((0.28, -0.40, 0.34), (0.30, 0.42, -0.36))
"""Half-side and centre of each region's two children, in the region's own coordinates."""


def main() -> None:
    """Draw the figure and write it."""
    # Same bytes in every run: ids in the file come from this salt, and no date is written.
    matplotlib.rcParams.update({"svg.hashsalt": "zoom", "font.family": "DejaVu Sans", "font.size": 9})
    figure = Figure(figsize=(11, 6.4), facecolor="white")
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, 11), ylim=(0, 6.4))
    canvas.axis("off")
    dots = _nuclei()
    _draw_slide(figure, dots)
    _draw_views(figure, canvas, dots)
    _draw_words(canvas)
    figure.savefig(OUT, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.1)


def _draw_slide(figure: Figure, dots: NDArray[np.float64]) -> None:
    """Draw the whole slide with the regions of all layers."""
    axes = _view(figure, (0.25, 2.2, 2.9, 2.9), (1.0, 0.0, 0.0), dots, LAYER_COLOURS[0])
    for number, region in enumerate(REGIONS, start=1):
        _box(axes, region, LAYER_COLOURS[1], str(number))
        for child in CHILDREN:
            _box(axes, _compose(region, child), LAYER_COLOURS[2])


def _draw_views(figure: Figure, canvas: Axes, dots: NDArray[np.float64]) -> None:
    """Draw what the network sees: one view, then three, then six, with arrows from each to its children."""
    root = _view(figure, (4.35, 4.55, 1.15, 1.15), (1.0, 0.0, 0.0), dots, LAYER_COLOURS[0])
    for number, region in enumerate(REGIONS, start=1):
        _box(root, region, LAYER_COLOURS[1])
        left = 3.45 + 1.2 * (number - 1)
        view = _view(figure, (left, 2.75, 0.95, 0.95), region, dots, LAYER_COLOURS[1])
        _arrow(canvas, (4.92, 4.5), (left + 0.48, 3.76), LAYER_COLOURS[1])
        for place, child in enumerate(CHILDREN):
            patch = _compose(region, child)
            _box(view, patch, LAYER_COLOURS[2])
            x = left - 0.06 + 0.57 * place
            _view(figure, (x, 1.35, 0.5, 0.5), patch, dots, LAYER_COLOURS[2])
            _arrow(canvas, (left + 0.48, 2.7), (x + 0.25, 1.91), LAYER_COLOURS[2])


def _draw_words(canvas: Axes) -> None:
    """Write the text of the figure, and draw the box of the network's last parts."""
    text = canvas.text
    text(1.7, 5.28, "The slide, in object storage", ha="center", weight="bold", color=INK)
    text(1.7, 1.98, "gigapixels; only windows of the\nregions below are read", ha="center", va="top", color=MUTED)
    text(7.15, 5.62, "Layer 0, the root: 1 view", weight="bold", color=LAYER_COLOURS[0])
    text(7.15, 5.5, _locator_words("3 regions, P\u2081 = 3"), va="top", color=INK)
    text(7.15, 3.62, "Layer 1: 3 views", weight="bold", color=LAYER_COLOURS[1])
    text(7.15, 3.5, "The same for each view, at a higher power:\n2 regions in each, P\u2082 = 2.", va="top", color=INK)
    text(7.15, 1.9, "Layer 2, the last: 3 \u00d7 2 = 6 patches", weight="bold", color=LAYER_COLOURS[2])
    text(
        7.15,
        1.78,
        "An encoder describes each patch.\nA head turns all of them into the\nslide's probability.",
        va="top",
        color=INK,
    )
    _arrow(canvas, (5.05, 1.25), (5.05, 0.82), LAYER_COLOURS[2])
    canvas.add_patch(Rectangle((3.55, 0.32), 3.0, 0.46, facecolor="#f4f4f4", edgecolor=INK, linewidth=0.8))
    text(5.05, 0.55, "encoder, head \u2192 probability", ha="center", va="center", color=INK)
    _arrow(canvas, (3.2, 4.6), (4.28, 5.05), LAYER_COLOURS[0])
    text(3.7, 5.02, "window", ha="center", color=MUTED, rotation=22, fontsize=8)


def _locator_words(result: str) -> str:
    return (
        "A conv stack turns the view into a map for\neach region. Sparsemax keeps the map's peak;\n"
        f"its mean and spread are the region (s, t\u2093, t\u1d67):\n{result}."
    )


def _view(
    figure: Figure, place: tuple[float, float, float, float], region: tuple[float, float, float],
    dots: NDArray[np.float64], colour: str,
) -> Axes:  # fmt: skip
    """Draw the part of the slide that a region covers.

    Args:
        figure: Takes the view.
        place: Left, bottom, width and height in inches.
        region: Half-side and centre in root coordinates.
        dots: Places of the nuclei, shape (N, 2).
        colour: Of the frame.
    """
    left, bottom, width, height = place
    axes = figure.add_axes((left / 11, bottom / 6.4, width / 11, height / 6.4))
    half, x, y = region
    axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half), xticks=[], yticks=[], facecolor=GLASS)
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=1.6)
    axes.add_patch(Polygon(_outline(), facecolor=TISSUE, edgecolor="none"))
    for spot_x, spot_y, radius in SPOTS:
        angle = np.linspace(0, 2 * np.pi, 40)
        wobble = radius * (1 + 0.12 * np.sin(3 * angle + 7 * spot_x))
        edge = np.stack([spot_x + wobble * np.cos(angle), spot_y + wobble * np.sin(angle)], axis=1)
        axes.add_patch(Polygon(edge, facecolor=SPOT, edgecolor="none"))
    inside = dots[(np.abs(dots - (x, y)) < half * 1.05).all(axis=1)]
    # Points grow as the region shrinks: at a higher power a nucleus covers more pixels.
    points = (0.009 / half) * width * 72
    axes.plot(inside[:, 0], inside[:, 1], "o", color=NUCLEUS, markersize=max(points, 0.4), markeredgewidth=0)
    return axes


def _box(axes: Axes, region: tuple[float, float, float], colour: str, name: str = "") -> None:
    half, x, y = region
    axes.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False, edgecolor=colour, linewidth=1.3))
    if name:
        axes.text(x - half, y - half - 0.02, name, color=colour, weight="bold", fontsize=9, va="bottom")


def _arrow(canvas: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    canvas.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1.0))


def _compose(parent: tuple[float, float, float], child: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return a child, given in its parent's coordinates, in root coordinates."""
    return parent[0] * child[0], parent[0] * child[1] + parent[1], parent[0] * child[2] + parent[2]


def _outline() -> NDArray[np.float64]:
    angle = np.linspace(0, 2 * np.pi, 200)
    radius = 0.72 + 0.10 * np.sin(2 * angle + 0.6) + 0.06 * np.sin(5 * angle) + 0.03 * np.cos(9 * angle)
    return np.stack([radius * np.cos(angle), 0.92 * radius * np.sin(angle)], axis=1)


def _nuclei() -> NDArray[np.float64]:
    """Return places of nuclei: sparse on tissue, dense in the spots; shape (N, 2)."""
    random = np.random.default_rng(3)
    sparse = random.uniform(-0.7, 0.7, (900, 2))
    sparse = sparse[np.hypot(*sparse.T) < 0.62]
    dense = [
        (x, y) + radius * np.sqrt(random.uniform(0, 0.9, (110, 1))) * _directions(random, 110) for x, y, radius in SPOTS
    ]
    return np.concatenate([sparse, *dense])


def _directions(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    angle = random.uniform(0, 2 * np.pi, count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


if __name__ == "__main__":
    main()
