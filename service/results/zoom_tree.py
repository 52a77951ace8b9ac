"""The picture of a zoom tree: the views of each layer, the regions selected in them, and the last patches in order.

Source: the paper, figure 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from service.results.pictures import (
    FAINT_INK,
    GAP_PX,
    INK,
    RULE,
    draw_tag,
    draw_tags,
    encode_jpeg,
    get_layer_colour,
    load_font,
)

WIDTH_PX, HEAD_PX, ROW_HEAD_PX, LABEL_PX = 1180, 66, 26, 24
"""Width of the picture, and heights of its head, of a row's heading and of the label below a view."""
MAX_VIEW_PX, MIN_VIEW_PX = 300, 117
"""Largest and smallest side of a view in the picture. Nine of the smallest fit in a row: three groups of three
siblings."""

OWN_TAG_PX = (28, 20)
"""(w, h) of the area at a view's top left that holds its own number."""


@dataclass(frozen=True, slots=True)
class LayerViews:
    """Views of one layer of a zoom."""

    views: NDArray[np.uint8]
    """Views as the model saw them, (N, H, W, 3)."""
    regions: NDArray[np.float64]
    """Regions of the views, (N, 3) in root coordinates."""
    um_per_px: float | None
    """Mean pixel size of a view in micrometres; None if the slide states no pixel size."""


def draw_zoom_tree(
    layers: Sequence[LayerViews], running: Sequence[float], schedule: Sequence[int], *, title: str, note: str
) -> bytes:
    """Draw a zoom tree: one row per layer, child boxes in the views, the running probability below the last patches.

    Args:
        layers: views of layers 0 to L.
        running: probability after each last patch, 0 to 1.
        schedule: regions per parent in each layer.
        title: text of the first line.
        note: text of the second line.

    Returns:
        A JPEG file.
    """
    grids = [_arrange(len(layer.views)) for layer in layers]
    heights = [ROW_HEAD_PX + rows * (side + LABEL_PX) for side, _, rows in grids]
    canvas = Image.new("RGB", (WIDTH_PX, HEAD_PX + sum(heights) + GAP_PX), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP_PX, GAP_PX), title, fill=INK, font=load_font(17))
    draw.text((GAP_PX, GAP_PX + 26), note, fill=FAINT_INK, font=load_font(13))
    top = HEAD_PX
    for number, layer in enumerate(layers):
        side, columns, _ = grids[number]
        draw.text((GAP_PX, top + 4), _format_heading(number, layer, len(layers)), fill=FAINT_INK, font=load_font(13))
        for n, view in enumerate(layer.views):
            x = GAP_PX + (n % columns) * (side + GAP_PX)
            y = top + ROW_HEAD_PX + (n // columns) * (side + LABEL_PX)
            picture = Image.fromarray(view).resize((side, side), Image.Resampling.BILINEAR)
            if number + 1 < len(layers):
                # A zoom that ended early has fewer children than the schedule plans; the slice is then shorter.
                children = layers[number + 1].regions[n * schedule[number] : (n + 1) * schedule[number]]
                _draw_children(picture, layer.regions[n], children, n * schedule[number], get_layer_colour(number + 1))
            else:
                _draw_probability(draw, (x, y + side), side, running[n])
            canvas.paste(picture, (x, y))
            draw.rectangle(
                (x, y, x + side - 1, y + side - 1), outline=get_layer_colour(number) if number else RULE, width=2
            )
            if number:
                draw_tag(draw, (x + 5, y + 4), str(n + 1), get_layer_colour(number))
        top += heights[number]
    return encode_jpeg(canvas)


def _arrange(num_views: int) -> tuple[int, int, int]:
    """Return the side of a layer's views in px, the number of columns and the number of rows."""
    room = WIDTH_PX - GAP_PX
    side = min(MAX_VIEW_PX, max(MIN_VIEW_PX, room // num_views - GAP_PX))
    columns = min(num_views, room // (side + GAP_PX))
    return side, columns, -(-num_views // columns)


def _format_heading(number: int, layer: LayerViews, num_layers: int) -> str:
    scale = "" if layer.um_per_px is None else f", {layer.um_per_px:.2g} um per pixel"
    if not number:
        return f"Layer 0: the whole slide{scale}, and the regions selected in it"
    if number + 1 < num_layers:
        return f"Layer {number}: views of these regions{scale}, and the regions selected in them"
    return f"Layer {number}: the last patches in order{scale}, and the slide's probability after each"


def _draw_children(
    view: Image.Image, parent: NDArray[np.float64], children: NDArray[np.float64], first: int, colour: str
) -> None:
    """Draw child boxes into a view with their numbers in the next row; parts outside the view are clipped."""
    draw, side, tags = ImageDraw.Draw(view), view.width, []
    for n, child in enumerate(children, start=first + 1):
        half = child[0] / parent[0]
        centre = (child[1:] - parent[1:]) / parent[0]
        left, top = ((centre - half + 1) * side / 2).tolist()
        right, bottom = ((centre + half + 1) * side / 2).tolist()
        # A box has a least size, so that tiny regions remain visible.
        draw.rectangle((left, top, max(right, left + 3), max(bottom, top + 3)), outline=colour, width=2)
        tags.append(((right + 4, top + 2), str(n)))
    draw_tags(draw, tags, colour, view.size, size_px=10, reserved_px=OWN_TAG_PX)


def _draw_probability(draw: ImageDraw.ImageDraw, corner: tuple[int, int], side: int, running: float) -> None:
    """Draw the running probability as a bar and a number."""
    x, y = corner
    draw.rectangle((x, y + 3, x + side - 42, y + 9), outline=RULE)
    draw.rectangle((x, y + 3, x + (side - 42) * running, y + 9), fill=INK)
    draw.text((x + side - 38, y), f"{running:.3f}", fill=INK, font=load_font(12))
