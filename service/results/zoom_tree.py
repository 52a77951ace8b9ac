"""A zoom as a picture: what each layer was shown, where it went from there, and the last patches in order.

Source: the paper, figure 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from service.results.pictures import FAINT_INK, GAP_PX, INK, RULE, colour_of, font, jpeg, tag, tags

WIDTH_PX, HEAD_PX, ROW_HEAD_PX, LABEL_PX = 1180, 66, 26, 24
LARGEST_PX, SMALLEST_PX = 300, 117
"""Side of a view on the picture; nine of the smallest stand in a row, so that siblings do, two or three of them."""

OWN_TAG_PX = (28, 20)
"""Where a view's own number stands, from its top-left corner."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer of a zoom was shown."""

    views: NDArray[np.uint8]
    """(N, h, w, 3) as the model saw them."""
    regions: NDArray[np.float64]
    """(N, 3) in root coordinates."""
    um_per_px: float | None
    """Of a view, the mean; None where the slide tells no pixel size."""


def zoom_tree_picture(
    layers: Sequence[Layer], running: Sequence[float], schedule: Sequence[int], *, title: str, note: str
) -> bytes:
    """JPEG of a zoom tree: a row for each layer, child boxes in the views, the running probability below the patches.

    Args:
        layers: 0 to L.
        running: probability after each last patch.
        schedule: regions per parent, layer by layer.
        title: first line.
        note: second line.
    """
    places = [_places(len(layer.views)) for layer in layers]
    heights = [ROW_HEAD_PX + rows * (side + LABEL_PX) for side, _, rows in places]
    canvas = Image.new("RGB", (WIDTH_PX, HEAD_PX + sum(heights) + GAP_PX), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP_PX, GAP_PX), title, fill=INK, font=font(17))
    draw.text((GAP_PX, GAP_PX + 26), note, fill=FAINT_INK, font=font(13))
    top = HEAD_PX
    for number, layer in enumerate(layers):
        side, columns, _ = places[number]
        draw.text((GAP_PX, top + 4), _heading(number, layer, len(layers)), fill=FAINT_INK, font=font(13))
        for n, view in enumerate(layer.views):
            x = GAP_PX + (n % columns) * (side + GAP_PX)
            y = top + ROW_HEAD_PX + (n // columns) * (side + LABEL_PX)
            shown = Image.fromarray(view).resize((side, side), Image.Resampling.BILINEAR)
            if number + 1 < len(layers):
                children = layers[number + 1].regions[n * schedule[number] : (n + 1) * schedule[number]]
                _children(shown, layer.regions[n], children, n * schedule[number], colour_of(number + 1))
            else:
                _probability(draw, (x, y + side), side, running[n])
            canvas.paste(shown, (x, y))
            draw.rectangle((x, y, x + side - 1, y + side - 1), outline=colour_of(number) if number else RULE, width=2)
            if number:
                tag(draw, (x + 5, y + 4), str(n + 1), colour_of(number))
        top += heights[number]
    return jpeg(canvas)


def _places(num: int) -> tuple[int, int, int]:
    """Side of the views of a row, how many stand beside each other, and in how many rows."""
    room = WIDTH_PX - GAP_PX
    side = min(LARGEST_PX, max(SMALLEST_PX, room // num - GAP_PX))
    columns = min(num, room // (side + GAP_PX))
    return side, columns, -(-num // columns)


def _heading(number: int, layer: Layer, num_layers: int) -> str:
    scale = "" if layer.um_per_px is None else f", {layer.um_per_px:.2g} um per pixel"
    if not number:
        return f"Layer 0: the whole slide{scale}, and where it looks next"
    if number + 1 < num_layers:
        return f"Layer {number}: what it saw there{scale}, and where it looks next"
    return f"Layer {number}: the last patches in order{scale}, and the slide's probability after each"


def _children(
    view: Image.Image, parent: NDArray[np.float64], children: NDArray[np.float64], first: int, colour: str
) -> None:
    """Draw child boxes into a view, with the numbers that they have in the next row; what lies beyond it is cut off."""
    draw, side, wanted = ImageDraw.Draw(view), view.width, []
    for n, child in enumerate(children, start=first + 1):
        half = child[0] / parent[0]
        centre = (child[1:] - parent[1:]) / parent[0]
        left, top = ((centre - half + 1) * side / 2).tolist()
        right, bottom = ((centre + half + 1) * side / 2).tolist()
        draw.rectangle((left, top, max(right, left + 3), max(bottom, top + 3)), outline=colour, width=2)
        wanted.append(((right + 4, top + 2), str(n)))
    tags(draw, wanted, colour, view.size, size=10, free_from=OWN_TAG_PX)


def _probability(draw: ImageDraw.ImageDraw, corner: tuple[int, int], side: int, running: float) -> None:
    """The running probability as a bar and a number."""
    x, y = corner
    draw.rectangle((x, y + 3, x + side - 42, y + 9), outline=RULE)
    draw.rectangle((x, y + 3, x + (side - 42) * running, y + 9), fill=INK)
    draw.text((x + side - 38, y), f"{running:.3f}", fill=INK, font=font(12))
