"""The picture of a zoom tree: a row per layer, boxes at the positions of the children, last patches in order."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from magnet.regions import ROOT
from service.results.pictures import GAP_PX, LAYER_COLOURS
from service.results.zoom_tree import HEAD_PX, LABEL_PX, MAX_VIEW_PX, ROW_HEAD_PX, WIDTH_PX, LayerViews, draw_zoom_tree


def compose(parents: NDArray[np.float64], children: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the children (s, tx, ty) of all parents in root coordinates, parent by parent."""
    scaled = parents[:, None, :1] * children
    scaled[..., 1:] += parents[:, None, 1:]
    return scaled.reshape(-1, 3)


def make_layers(schedule: tuple[int, ...], children: NDArray[np.float64]) -> list[LayerViews]:
    """Return a zoom whose regions all have the same children; view n of a layer has the grey level 60 + 10 n."""
    regions, layers = ROOT[None], []
    for number in (1, *schedule):
        regions = regions if number == 1 and not layers else compose(regions, children[:number])
        views = np.stack([np.full((32, 32, 3), 60 + 10 * (n % 16), np.uint8) for n in range(len(regions))])
        layers.append(LayerViews(views, regions, 0.5))
    return layers


def draw(layers: list[LayerViews], schedule: tuple[int, ...]) -> NDArray[np.int16]:
    running = np.linspace(0.1, 0.9, len(layers[-1].views)).tolist()
    with Image.open(io.BytesIO(draw_zoom_tree(layers, running, schedule, title="s", note="n"))) as image:
        return np.asarray(image).astype(np.int16)


CHILDREN = np.array([[0.25, -0.5, -0.5], [0.2, 0.5, 0.25]])


def test_child_boxes_are_drawn_at_the_positions_of_the_children() -> None:
    picture = draw(make_layers((2, 1), CHILDREN), (2, 1))
    top = HEAD_PX + ROW_HEAD_PX
    root = picture[top : top + MAX_VIEW_PX, GAP_PX : GAP_PX + MAX_VIEW_PX]
    near = np.abs(root - ImageColor.getrgb(LAYER_COLOURS[1])).max(axis=-1) < 50
    rows, columns = np.argwhere(near[: MAX_VIEW_PX // 2 - 4, : MAX_VIEW_PX // 2 - 30]).T
    # half-side .25 at (-.5, -.5): from an eighth to three eighths of the view
    assert abs(rows.min() - MAX_VIEW_PX / 8) <= 2
    assert abs(columns.min() - MAX_VIEW_PX / 8) <= 2
    assert abs(rows.max() - MAX_VIEW_PX * 3 / 8) <= 2


def test_views_and_patches_are_in_order() -> None:
    picture = draw(make_layers((2, 2), CHILDREN), (2, 2))
    row = ROW_HEAD_PX + MAX_VIEW_PX + LABEL_PX
    for layer, num in ((1, 2), (2, 4)):
        side = min(MAX_VIEW_PX, (WIDTH_PX - GAP_PX) // num - GAP_PX)
        y = HEAD_PX + layer * row + ROW_HEAD_PX + side - 20
        shades = [picture[y, GAP_PX + n * (side + GAP_PX) + 20].mean() for n in range(num)]
        assert np.abs(np.array(shades) - [60 + 10 * n for n in range(num)]).max() < 6


def test_the_length_of_a_bar_is_the_probability() -> None:
    picture = draw(make_layers((2, 1), CHILDREN), (2, 1))
    y = HEAD_PX + 3 * (ROW_HEAD_PX + MAX_VIEW_PX + LABEL_PX) - LABEL_PX + 6
    lengths = [
        (picture[y, GAP_PX + n * (MAX_VIEW_PX + GAP_PX) :][: MAX_VIEW_PX - 42, 0] < 90).sum() / (MAX_VIEW_PX - 42)
        for n in range(2)
    ]
    assert np.allclose(lengths, [0.1, 0.9], atol=0.02)


def test_many_patches_take_more_rows_but_no_more_width() -> None:
    few, many = (draw(make_layers((2, num), CHILDREN.repeat(9, axis=0)), (2, num)) for num in (2, 16))
    assert few.shape[1] == many.shape[1] == WIDTH_PX
    assert many.shape[0] > few.shape[0]


def test_a_zoom_that_ended_early_is_drawn_with_the_patches_that_were_read() -> None:
    layers = make_layers((2, 2), CHILDREN)
    layers[-1] = LayerViews(layers[-1].views[:3], layers[-1].regions[:3], None)
    assert draw(layers, (2, 2)).shape[1] == WIDTH_PX
