"""Pictures of one score: the overlay of the regions on the slide's thumbnail, and drawing functions for all pictures.

The picture of what the model was shown in each region is in `service.results.zoom_tree`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from magnet.regions import to_level0

LAYER_COLOURS = ("#000000", "#2a78d6", "#1baf7a", "#eda100", "#e34948", "#4a3aa7")
"""Colours of the outlines of layers 0, 1, 2, ...; the root is not drawn. Readers with deficient colour vision can
distinguish them."""
INK, FAINT_INK, RULE = "#0b0b0b", "#52514e", "#c9c7c1"
"""Colours of text, of secondary text and of thin lines."""

OVERLAY_PX, GAP_PX, HEAD_PX, FOOT_PX = 880, 12, 64, 44
"""Longer side of the slide on an overlay, margin, and heights of the parts above and below the slide."""
MIN_WIDTH_PX = 640
"""Least width of the slide's part of an overlay, so that the title fits."""


def draw_overlay(
    thumbnail: NDArray[np.uint8],
    size_px: tuple[int, int],
    regions: Sequence[NDArray[np.float64]],
    *,
    title: str,
    mpp: float | None,
) -> bytes:
    """Draw the regions of each layer and a scale bar on a thumbnail.

    Args:
        thumbnail: (h, w, 3) RGB of the whole slide.
        size_px: (w, h) of level 0.
        regions: regions of each layer 0 to L, (N, 3) in root coordinates.
        title: text of the first line.
        mpp: micrometres per level-0 pixel; None if unknown, which leaves out the scale bar.

    Returns:
        A JPEG file.
    """
    scale = OVERLAY_PX / max(thumbnail.shape[:2])
    height, width = (max(1, round(n * scale)) for n in thumbnail.shape[:2])
    canvas = Image.new("RGB", (max(width, MIN_WIDTH_PX) + 2 * GAP_PX, HEAD_PX + height + FOOT_PX), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP_PX, GAP_PX - 2), title, fill=INK, font=load_font(16))
    _draw_legend(draw, len(regions))
    slide, px_per_l0 = Image.fromarray(thumbnail).resize((width, height), Image.Resampling.LANCZOS), width / size_px[0]
    # Regions may extend beyond the slide. Drawn on the slide's own image, they are clipped at its border.
    _draw_regions(ImageDraw.Draw(slide), regions, size_px, px_per_l0)
    canvas.paste(slide, (GAP_PX, HEAD_PX))
    draw.rectangle((GAP_PX - 1, HEAD_PX - 1, GAP_PX + width, HEAD_PX + height), outline=RULE)
    _draw_scale_bar(draw, HEAD_PX + height + 12, width, None if mpp is None else mpp / px_per_l0)
    return encode_jpeg(canvas)


def get_layer_colour(layer: int) -> str:
    """Return the colour of a layer's regions; deep layers share the last colour."""
    return LAYER_COLOURS[min(layer, len(LAYER_COLOURS) - 1)]


def load_font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of all pictures. It ships with Pillow and has no micro sign."""
    return ImageFont.load_default(size_px)


def draw_tag(draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, colour: str, size_px: int = 11) -> None:
    """Draw a short text on a filled rectangle, legible on any background; `xy` is the text's top-left corner."""
    left, top, right, bottom = draw.textbbox(xy, text, font=load_font(size_px))
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=colour)
    # Green contributes most to perceived brightness, so that it decides between dark and white text.
    is_bright = ImageColor.getrgb(colour)[1] > 140
    draw.text(xy, text, fill=INK if is_bright else "white", font=load_font(size_px))


def draw_tags(
    draw: ImageDraw.ImageDraw,
    tags: Sequence[tuple[tuple[float, float], str]],
    colour: str,
    picture_px: tuple[int, int],
    *,
    size_px: int = 11,
    reserved_px: tuple[float, float] = (0, 0),
) -> None:
    """Draw tags near their preferred positions, all inside the picture and none over another.

    Args:
        draw: drawing context of the picture.
        tags: preferred top-left corner and text of each tag.
        colour: background of all tags.
        picture_px: (w, h) of the picture.
        size_px: font size.
        reserved_px: (w, h) of an area at the top left that is left free.
    """
    occupied = [(0.0, 0.0, *reserved_px)]
    for (x, y), text in tags:
        width, height = (end + 4 for end in draw.textbbox((0, 0), text, font=load_font(size_px))[2:])
        max_x, max_y = picture_px[0] - width, picture_px[1] - height
        x, y = min(max(x, 2), max_x), min(max(y, 2), max_y)
        # Search downwards, then in the columns to the left. A tag without a free position is drawn at the left edge.
        while x > 0 and any(
            x < right and left < x + width and y < bottom and top < y + height for left, top, right, bottom in occupied
        ):
            x, y = (x, y + 2) if y + 2 <= max_y else (x - width, 2)
        occupied.append((x, y, x + width, y + height))
        draw_tag(draw, (x, y), text, colour, size_px)


def encode_jpeg(canvas: Image.Image) -> bytes:
    """Return a picture as a JPEG file: a fifth of a PNG's size, which counts for the thousands of a cohort."""
    file = io.BytesIO()
    # Subsampled colour would blur the thin coloured lines.
    canvas.save(file, "JPEG", quality=90, subsampling=0, optimize=True)
    return file.getvalue()


def round_length(at_most: float) -> float:
    """Return the largest of ..., 1, 2, 5, 10, 20, ... that is no larger than `at_most`."""
    power = 10 ** math.floor(math.log10(at_most))
    return float(next(step * power for step in (5, 2, 1) if step * power <= at_most * (1 + 1e-9)))


def _draw_legend(draw: ImageDraw.ImageDraw, num_layers: int) -> None:
    x = GAP_PX
    for layer in range(1, num_layers):
        draw.rectangle((x, 38, x + 12, 50), outline=get_layer_colour(layer), width=3)
        text = f"layer {layer}" if layer + 1 < num_layers else f"layer {layer}: last patches"
        draw.text((x + 18, 35), text, fill=FAINT_INK, font=load_font(14))
        x += 36 + int(draw.textlength(text, font=load_font(14)))


def _draw_regions(
    draw: ImageDraw.ImageDraw, regions: Sequence[NDArray[np.float64]], size_px: tuple[int, int], scale: float
) -> None:
    for layer in range(1, len(regions)):
        for x, y, side in to_level0(regions[layer], size_px) * scale:
            # Frozen patches have the same boxes as the first layer, whose wider lines remain visible below them.
            box = (x, y, max(x + side, x + 4), max(y + side, y + 4))
            draw.rectangle(box, outline=get_layer_colour(layer), width=4 if layer == 1 else 2)
    # Regions of deeper layers are too close together for numbers here; the zoom tree numbers them.
    first_layer = to_level0(regions[1], size_px) * scale
    tags = [((x + side + 4, y + 2), str(n)) for n, (x, y, side) in enumerate(first_layer, start=1)]
    draw_tags(draw, tags, get_layer_colour(1), (round(size_px[0] * scale), round(size_px[1] * scale)))


def _draw_scale_bar(draw: ImageDraw.ImageDraw, y: int, slide_width_px: int, um_per_px: float | None) -> None:
    """Draw a bar of a round length, at most a quarter of the slide's width."""
    if um_per_px is None:
        draw.text((GAP_PX, y), "no scale: the slide states no pixel size", fill=FAINT_INK, font=load_font(14))
        return
    length_um = round_length(slide_width_px * um_per_px / 4)
    length_px = length_um / um_per_px
    draw.rectangle((GAP_PX, y + 4, GAP_PX + length_px, y + 9), fill=INK)
    text = f"{length_um / 1e3:g} mm" if length_um >= 1e3 else f"{length_um:g} um"
    draw.text((GAP_PX + length_px + 8, y - 3), text, fill=INK, font=load_font(14))
