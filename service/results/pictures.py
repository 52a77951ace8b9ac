"""The evidence of one score as a picture: where the model looked. What it saw there is `service.results.zoom_tree`."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from magnet.regions import to_level0

LAYER_COLOURS = ("#000000", "#2a78d6", "#1baf7a", "#eda100", "#e34948", "#4a3aa7")
"""Outlines of the regions of layers 0, 1, 2, ...; the root is not drawn. They differ also without colour vision."""
INK, FAINT_INK, RULE = "#0b0b0b", "#52514e", "#c9c7c1"

OVERLAY_PX, GAP_PX, HEAD_PX, FOOT_PX = 880, 12, 64, 44
MIN_WIDTH_PX = 640
"""Room for the title."""


def overlay_picture(
    thumbnail: NDArray[np.uint8],
    size_px: tuple[int, int],
    regions: Sequence[NDArray[np.float64]],
    *,
    title: str,
    mpp: float | None,
) -> bytes:
    """JPEG of a thumbnail with the regions of each layer and a scale bar.

    Args:
        thumbnail: (h, w, 3) RGB of the whole slide.
        size_px: level-0 width and height.
        regions: per layer 0 to L, (N, 3) in root coordinates.
        title: first line.
        mpp: micrometres per level-0 pixel; None: there is no scale.
    """
    scale = OVERLAY_PX / max(thumbnail.shape[:2])
    high, wide = (max(1, round(n * scale)) for n in thumbnail.shape[:2])
    canvas = Image.new("RGB", (max(wide, MIN_WIDTH_PX) + 2 * GAP_PX, HEAD_PX + high + FOOT_PX), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP_PX, GAP_PX - 2), title, fill=INK, font=font(16))
    _legend(draw, len(regions))
    slide, px_per_l0 = Image.fromarray(thumbnail).resize((wide, high), Image.Resampling.LANCZOS), wide / size_px[0]
    _boxes(ImageDraw.Draw(slide), regions, size_px, px_per_l0)  # what reaches beyond the slide is cut off
    canvas.paste(slide, (GAP_PX, HEAD_PX))
    draw.rectangle((GAP_PX - 1, HEAD_PX - 1, GAP_PX + wide, HEAD_PX + high), outline=RULE)
    _scale_bar(draw, HEAD_PX + high + 12, wide, None if mpp is None else mpp / px_per_l0)
    return jpeg(canvas)


def colour_of(layer: int) -> str:
    """The colour of a layer's regions."""
    return LAYER_COLOURS[min(layer, len(LAYER_COLOURS) - 1)]


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all pictures; it ships with Pillow, and has no micro sign."""
    return ImageFont.load_default(size)


def tag(draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, colour: str, size: int = 11) -> None:
    """A short text on a patch of colour, legible on anything; `xy` is its top-left corner."""
    left, top, right, bottom = draw.textbbox(xy, text, font=font(size))
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=colour)
    bright = ImageColor.getrgb(colour)[1] > 140  # green is most of what the eye calls bright
    draw.text(xy, text, fill=INK if bright else "white", font=font(size))


def tags(
    draw: ImageDraw.ImageDraw,
    wanted: Sequence[tuple[tuple[float, float], str]],
    colour: str,
    size_px: tuple[int, int],
    *,
    size: int = 11,
    free_from: tuple[float, float] = (0, 0),
) -> None:
    """Tags as near to the places wanted as they can be within a picture without covering each other.

    Args:
        draw: of the picture.
        wanted: top-left corner and text of each.
        colour: of all.
        size_px: width and height of the picture.
        size: of the font.
        free_from: the corner at the top left that ends here, (x, y), is left free.
    """
    taken = [(0.0, 0.0, *free_from)]
    for (x, y), text in wanted:
        wide, high = (end + 4 for end in draw.textbbox((0, 0), text, font=font(size))[2:])
        most_x, most_y = size_px[0] - wide, size_px[1] - high
        x, y = min(max(x, 2), most_x), min(max(y, 2), most_y)
        while x > 0 and any(
            x < right and left < x + wide and y < bottom and top < y + high for left, top, right, bottom in taken
        ):
            x, y = (x, y + 2) if y + 2 <= most_y else (x - wide, 2)
        taken.append((x, y, x + wide, y + high))
        tag(draw, (x, y), text, colour, size)


def jpeg(canvas: Image.Image) -> bytes:
    """A picture's file: a fifth of a PNG's bytes, of which a cohort has thousands; colour in full, for thin lines."""
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=90, subsampling=0, optimize=True)
    return file.getvalue()


def round_length(at_most: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that is no larger."""
    power = 10 ** math.floor(math.log10(at_most))
    return float(next(step * power for step in (5, 2, 1) if step * power <= at_most * (1 + 1e-9)))


def _legend(draw: ImageDraw.ImageDraw, num_layers: int) -> None:
    x = GAP_PX
    for layer in range(1, num_layers):
        draw.rectangle((x, 38, x + 12, 50), outline=colour_of(layer), width=3)
        text = f"layer {layer}" if layer + 1 < num_layers else f"layer {layer}: last patches"
        draw.text((x + 18, 35), text, fill=FAINT_INK, font=font(14))
        x += 36 + int(draw.textlength(text, font=font(14)))


def _boxes(
    draw: ImageDraw.ImageDraw, regions: Sequence[NDArray[np.float64]], size_px: tuple[int, int], scale: float
) -> None:
    for layer in range(1, len(regions)):
        for x, y, side in to_level0(regions[layer], size_px) * scale:
            # The first layer's are wider: those of frozen patches lie on them.
            box = (x, y, max(x + side, x + 4), max(y + side, y + 4))
            draw.rectangle(box, outline=colour_of(layer), width=4 if layer == 1 else 2)
    # The others lie too close to be numbered; the zoom tree numbers them.
    first = to_level0(regions[1], size_px) * scale
    wanted = [((x + side + 4, y + 2), str(n)) for n, (x, y, side) in enumerate(first, start=1)]
    tags(draw, wanted, colour_of(1), (round(size_px[0] * scale), round(size_px[1] * scale)))


def _scale_bar(draw: ImageDraw.ImageDraw, y: int, wide: int, um_per_px: float | None) -> None:
    """A bar of a round length, at most a quarter of the slide wide."""
    if um_per_px is None:
        draw.text((GAP_PX, y), "no scale: the slide tells no pixel size", fill=FAINT_INK, font=font(14))
        return
    length_um = round_length(wide * um_per_px / 4)
    length_px = length_um / um_per_px
    draw.rectangle((GAP_PX, y + 4, GAP_PX + length_px, y + 9), fill=INK)
    text = f"{length_um / 1e3:g} mm" if length_um >= 1e3 else f"{length_um:g} um"
    draw.text((GAP_PX + length_px + 8, y - 3), text, fill=INK, font=font(14))
