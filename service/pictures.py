"""The evidence of one score as a picture: where the model looked on the thumbnail, and what it saw last."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from magnet.regions import to_level0

LAYER_COLOURS = ("#000000", "#2a78d6", "#1baf7a", "#eda100", "#e34948", "#4a3aa7")
"""Outlines of the regions of layers 0, 1, 2, ...; the root is not drawn. They differ also without colour vision."""

THUMBNAIL_PX, PATCH_PX, GAP_PX, HEAD_PX, LABEL_PX = 640, 132, 8, 56, 18


def zoom_picture(
    thumbnail: NDArray[np.uint8],
    size_px: tuple[int, int],
    regions: Sequence[NDArray[np.float64]],
    patches: NDArray[np.uint8],
    running: Sequence[float],
    *,
    title: str,
) -> bytes:
    """PNG of a zoom: the thumbnail with the regions of each layer, the last patches in order.

    Args:
        thumbnail: (h, w, 3) RGB of the whole slide.
        size_px: level-0 width and height.
        regions: per layer 0 to L, (N, 3) in root coordinates.
        patches: (N_L, h, w, 3) as the model saw them.
        running: probability after each patch.
        title: first line.
    """
    scale = THUMBNAIL_PX / max(thumbnail.shape[:2])
    high, wide = (max(1, round(n * scale)) for n in thumbnail.shape[:2])
    columns = -(-len(patches) // max(1, (THUMBNAIL_PX + GAP_PX) // (PATCH_PX + LABEL_PX + GAP_PX)))
    width = max(wide + GAP_PX * 2, 460) + columns * (PATCH_PX + GAP_PX) + GAP_PX
    canvas = Image.new("RGB", (width, HEAD_PX + THUMBNAIL_PX + 2 * GAP_PX), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    draw.text((GAP_PX, GAP_PX), title, fill="#0b0b0b", font=font)
    _legend(draw, len(regions), font)
    canvas.paste(Image.fromarray(thumbnail).resize((wide, high), Image.Resampling.LANCZOS), (GAP_PX, HEAD_PX))
    _boxes(draw, regions, size_px, wide / size_px[0])
    _patches(canvas, draw, patches, running, max(wide + GAP_PX * 2, 460), columns, len(regions) - 1)
    png = io.BytesIO()
    canvas.save(png, "PNG", optimize=True)
    return png.getvalue()


def _colour(layer: int) -> str:
    return LAYER_COLOURS[min(layer, len(LAYER_COLOURS) - 1)]


def _legend(draw: ImageDraw.ImageDraw, num_layers: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> None:
    x = GAP_PX
    for layer in range(1, num_layers):
        draw.rectangle((x, 34, x + 12, 46), outline=_colour(layer), width=3)
        text = f"layer {layer}" if layer + 1 < num_layers else f"layer {layer}: last patches"
        draw.text((x + 18, 31), text, fill="#52514e", font=font)
        x += 30 + int(draw.textlength(text, font=font))


def _boxes(
    draw: ImageDraw.ImageDraw, regions: Sequence[NDArray[np.float64]], size_px: tuple[int, int], scale: float
) -> None:
    for layer in range(1, len(regions)):
        for n, (x, y, side) in enumerate(to_level0(regions[layer], size_px) * scale):
            left, top = GAP_PX + x, HEAD_PX + y
            right, bottom = max(left + side, left + 4), max(top + side, top + 4)
            draw.rectangle((left, top, right, bottom), outline=_colour(layer), width=2)
            if layer + 1 == len(regions):
                draw.text((right + 2, top - 2), str(n + 1), fill=_colour(layer), font=ImageFont.load_default(11))


def _patches(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    patches: NDArray[np.uint8],
    running: Sequence[float],
    left: int,
    columns: int,
    layer: int,
) -> None:
    """The last patches, left to right and down, with the probability after each."""
    font = ImageFont.load_default(13)
    for n, (patch, probability) in enumerate(zip(patches, running, strict=True)):
        x = left + (n % columns) * (PATCH_PX + GAP_PX)
        y = HEAD_PX + (n // columns) * (PATCH_PX + LABEL_PX + GAP_PX)
        canvas.paste(Image.fromarray(patch).resize((PATCH_PX, PATCH_PX), Image.Resampling.BILINEAR), (x, y))
        draw.rectangle((x, y, x + PATCH_PX, y + PATCH_PX), outline=_colour(layer), width=2)
        draw.text((x, y + PATCH_PX + 1), f"{n + 1}: p = {probability:.3f}", fill="#0b0b0b", font=font)
