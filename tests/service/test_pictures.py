"""The picture of a zoom: it opens, has its size, and its boxes lie where the regions do."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor

from magnet.regions import from_level0
from service.pictures import GAP_PX, HEAD_PX, LAYER_COLOURS, PATCH_PX, THUMBNAIL_PX, zoom_picture

SIZE = (8000, 6000)


def thumbnail(size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    scale = THUMBNAIL_PX / max(size)
    return np.full((round(size[1] * scale), round(size[0] * scale), 3), (250, 240, 245), np.uint8)


def regions(*boxes: tuple[float, float, float], size: tuple[int, int] = SIZE) -> NDArray[np.float64]:
    """Regions from boxes (x, y, side) in level-0 pixels."""
    return from_level0(np.array(boxes, dtype=np.float64), size)


def drawn(layers: list[NDArray[np.float64]], size: tuple[int, int] = SIZE, title: str = "t") -> NDArray[np.uint8]:
    """The picture of some regions; patch n is filled with grey level 10 n."""
    num = len(layers[-1])
    patches = np.stack([np.full((64, 64, 3), 10 * n, np.uint8) for n in range(num)])
    running = [0.1 * n for n in range(num)]
    png = zoom_picture(thumbnail(size), size, layers, patches, running, title=title)
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        return np.asarray(image)


ROOT = np.array([[1.0, 0.0, 0.0]])


def where(picture: NDArray[np.uint8], layer: int) -> NDArray[np.intp]:
    """(row, column) of the pixels on the thumbnail that have a layer's colour."""
    colour = np.array(ImageColor.getrgb(LAYER_COLOURS[layer]))
    on_thumbnail = picture[HEAD_PX:, : THUMBNAIL_PX + 2 * GAP_PX]
    return np.argwhere((on_thumbnail == colour).all(axis=-1))


def test_boxes_lie_where_their_regions_do() -> None:
    picture = drawn([ROOT, regions((1000, 2000, 3000)), regions((2500, 4000, 500))])
    scale = THUMBNAIL_PX / 8000
    for layer, (x, y, side) in ((1, (1000, 2000, 3000)),):
        rows, columns = where(picture, layer).T
        assert abs(columns.min() - (GAP_PX + x * scale)) <= 1
        assert abs(columns.max() - (GAP_PX + (x + side) * scale)) <= 1
        assert abs(rows.min() - y * scale) <= 1
        assert abs(rows.max() - (y + side) * scale) <= 1
        middle = picture[HEAD_PX + round((y + side * 0.3) * scale), GAP_PX + round((x + side * 0.3) * scale)]
        assert tuple(middle) == (250, 240, 245)  # an outline, not a filled box
    rows, columns = where(picture, 2).T
    assert abs(columns.min() - (GAP_PX + 2500 * scale)) <= 1
    assert abs(rows.max() - 4500 * scale) <= 1


@pytest.mark.parametrize("size", [(8000, 6000), (3000, 8000), (5000, 5000)])
def test_boxes_are_placed_on_slides_of_any_shape(size: tuple[int, int]) -> None:
    box = (0.25 * size[0], 0.5 * size[1], 0.2 * min(size))
    picture = drawn([ROOT, regions(box, size=size), regions(box, size=size)[:, :] * [0.5, 1, 1]], size)
    rows, columns = where(picture, 1).T
    scale = THUMBNAIL_PX / max(size)
    assert abs(columns.min() - GAP_PX - box[0] * scale) <= 1
    assert abs(rows.min() - box[1] * scale) <= 1


def test_the_root_is_not_drawn() -> None:
    picture = drawn([ROOT, regions((1000, 2000, 3000))])
    assert len(where(picture, 0)) == 0


def test_the_smallest_region_is_still_seen() -> None:
    picture = drawn([ROOT, regions((4000, 3000, 2))])
    assert len(where(picture, 1)) >= 16


def test_patches_stand_beside_the_thumbnail_in_order() -> None:
    picture = drawn([ROOT, regions(*[(1000 + 10 * n, 1000, 50) for n in range(6)])])
    assert picture.shape[0] == HEAD_PX + THUMBNAIL_PX + 2 * GAP_PX
    left = THUMBNAIL_PX + 2 * GAP_PX
    columns = -(-6 // 4)  # four rows of patches fit beside the thumbnail
    assert picture.shape[1] == left + columns * (PATCH_PX + GAP_PX) + GAP_PX
    centres = [
        picture[HEAD_PX + row * (PATCH_PX + 18 + GAP_PX) + PATCH_PX // 2, left + column * (PATCH_PX + GAP_PX) + 66]
        for row in range(3)
        for column in range(columns)
    ]
    assert [tuple(c) for c in centres] == [(10 * n,) * 3 for n in range(6)]


def test_many_patches_make_the_picture_wider_and_no_higher() -> None:
    few, many = (drawn([ROOT, regions(*[(100 * n, 0, 90) for n in range(num)])]) for num in (3, 24))
    assert few.shape[0] == many.shape[0]
    assert many.shape[1] == few.shape[1] + 5 * (PATCH_PX + GAP_PX)


def test_the_title_is_written() -> None:
    blank, told = (drawn([ROOT, regions((0, 0, 9))], title=title) for title in ("", "slide 7: probability 0.9"))
    assert (blank[:30] == 255).all()
    assert (told[:30] < 100).any()


def test_there_are_colours_for_deeper_zooms_than_the_list_has() -> None:
    layers = [ROOT, *[regions((1000, 1000, 4000 - 400 * n)) for n in range(7)]]
    assert len(where(drawn(layers), len(LAYER_COLOURS) - 1)) > 0
