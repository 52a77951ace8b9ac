"""The overlay: boxes at the positions of the regions, a scale bar of the length that it states."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from magnet.regions import from_level0
from service.results import pictures
from service.results.pictures import FOOT_PX, GAP_PX, HEAD_PX, LAYER_COLOURS, OVERLAY_PX, draw_overlay, round_length

SIZE = (8000, 6000)
PALE = (250, 240, 245)
ROOT = np.array([[1.0, 0.0, 0.0]])


def thumbnail(size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    scale = 640 / max(size)
    return np.full((round(size[1] * scale), round(size[0] * scale), 3), PALE, np.uint8)


def regions(*boxes: tuple[float, float, float], size: tuple[int, int] = SIZE) -> NDArray[np.float64]:
    """Return regions from boxes (x, y, side) in level-0 pixels."""
    return from_level0(np.array(boxes, dtype=np.float64), size)


def draw(
    layers: list[NDArray[np.float64]], size: tuple[int, int] = SIZE, title: str = "t", mpp: float | None = 0.25
) -> NDArray[np.int16]:
    picture = draw_overlay(thumbnail(size), size, layers, title=title, mpp=mpp)
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        return np.asarray(image).astype(np.int16)


def find_colour(picture: NDArray[np.int16], layer: int) -> NDArray[np.intp]:
    """Return (row, column) of the pixels on the thumbnail that have about a layer's colour."""
    near = np.abs(picture - ImageColor.getrgb(LAYER_COLOURS[layer])).max(axis=-1) < 50
    return np.argwhere(near[HEAD_PX:-FOOT_PX]) + np.array([HEAD_PX, 0])


@pytest.mark.parametrize("size", [(8000, 6000), (3000, 8000), (5000, 5000)])
def test_boxes_are_drawn_at_the_positions_of_their_regions(size: tuple[int, int]) -> None:
    x, y, side = 0.25 * size[0], 0.5 * size[1], 0.2 * min(size)
    picture = draw([ROOT, ROOT, regions((x, y, side), size=size)], size)
    scale = OVERLAY_PX / max(size)
    rows, columns = find_colour(picture, 2).T
    assert abs(columns.min() - (GAP_PX + x * scale)) <= 2
    assert abs(columns.max() - (GAP_PX + (x + side) * scale)) <= 2
    assert abs(rows.min() - (HEAD_PX + y * scale)) <= 2
    assert abs(rows.max() - (HEAD_PX + (y + side) * scale)) <= 2
    middle = picture[HEAD_PX + round((y + side * 0.5) * scale), GAP_PX + round((x + side * 0.5) * scale)]
    assert np.abs(middle - PALE).max() < 12  # an outline, not a filled box


def test_the_smallest_region_is_visible() -> None:
    picture = draw([ROOT, ROOT, regions((4000, 3000, 2))])
    assert len(find_colour(picture, 2)) >= 8


@pytest.mark.parametrize("mpp", [0.25, 1.0, 7.3])
def test_the_scale_bar_has_the_length_that_it_states(mpp: float) -> None:
    picture = draw([ROOT, ROOT], mpp=mpp)
    bar = picture[-FOOT_PX + 12 + 6, :, 0] < 60
    length_um = np.argmin(bar[GAP_PX + 2 :]) / (OVERLAY_PX / 8000) * mpp  # up to the first pale pixel
    um_per_px = mpp * 8000 / OVERLAY_PX
    assert length_um == pytest.approx(round_length(8000 * mpp / 4), abs=3 * um_per_px)


def test_a_slide_without_a_pixel_size_has_no_scale_bar() -> None:
    picture = draw([ROOT, ROOT], mpp=None)
    assert (picture[-FOOT_PX + 12 + 6, :, 0] < 60).sum() < 60  # text instead of a bar


@pytest.mark.parametrize(("at_most", "length"), [(9.99, 5), (1, 1), (450, 200), (0.21, 0.2), (2000, 2000)])
def test_lengths_are_round(at_most: float, length: float) -> None:
    assert round_length(at_most) == pytest.approx(length)


def test_regions_of_the_first_layer_remain_visible_below_frozen_patches() -> None:
    first = regions((1000, 1000, 3000))
    picture = draw([ROOT, first, first])
    assert min(len(find_colour(picture, 1)), len(find_colour(picture, 2))) > 4 * 3000 * OVERLAY_PX / 8000


def test_the_number_of_a_region_that_extends_beyond_the_slide_is_inside_it() -> None:
    picture = draw([ROOT, regions((7000, 2000, 3000))])
    rows, columns = find_colour(picture, 1).T
    inside = (columns > columns.max() - 12) & (rows > rows.min() + 4) & (rows < rows.min() + 18)
    assert inside.sum() > 60  # of the 11 x 13 pixels at the picture's edge, below the box itself


def test_tags_are_inside_the_picture_and_cover_neither_each_other_nor_the_reserved_corner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corners: list[tuple[float, float]] = []
    monkeypatch.setattr(pictures, "draw_tag", lambda draw, xy, *_: corners.append(xy))
    context = ImageDraw.Draw(Image.new("RGB", (120, 60)))
    tags = [((x, y), "10") for x, y in [(500, -9), (500, -9), (500, 0), (60, 30), (62, 33), (0, 0)]]
    pictures.draw_tags(context, tags, "red", (120, 60), reserved_px=(28, 20))
    _, _, width, height = context.textbbox((0, 0), "10", font=pictures.load_font(11))
    boxes = [(0, 0, 28, 20), *((x, y, x + width, y + height) for x, y in corners)]
    assert len(corners) == len(tags)
    for n, (left, top, right, bottom) in enumerate(boxes):
        assert (left >= 0, top >= 0, right <= 120, bottom <= 60) == (True,) * 4
        for other in boxes[:n]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_the_title_is_drawn() -> None:
    blank, titled = (draw([ROOT, ROOT], title=title) for title in ("", "slide 7: probability 0.9"))
    assert (blank[:30] > 240).all()
    assert (titled[:30] < 100).any()


def test_layers_beyond_the_list_of_colours_have_the_last_colour() -> None:
    layers = [ROOT, *[regions((1000, 1000, 4000 - 400 * n)) for n in range(7)]]
    assert len(find_colour(draw(layers), len(LAYER_COLOURS) - 1)) > 0
