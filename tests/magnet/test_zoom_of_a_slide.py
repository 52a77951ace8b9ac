"""The root view of a real slide compared with the whole image as Pillow resizes and pads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import torch
from PIL import Image, ImageOps

from magnet.windows import drive
from magnet.zoom import ZoomOptions
from service.slides.reader import RegionReader
from tests.magnet.zoom_harness import config, network, views_of


@pytest.mark.parametrize(("name", "side"), [("cmu-1-small-region-pyramid.svs", 96), ("he-two-pieces.tif", 60)])
def test_the_root_view_is_the_resized_slide_with_symmetric_black_padding(name: str, side: int, test_data: Path) -> None:
    path = test_data / "slides" / name
    model = network(config((1,), view_px=side)).eval()
    with RegionReader() as reader, torch.inference_mode():
        batch = reader.batch([str(path)])
        root = views_of(drive(model.zoom(batch.side_px, ZoomOptions(keep_views=True)), batch.fetch).trace)[0][0, 0]
    view = root.astype(int)
    with openslide.OpenSlide(path) as slide:
        whole = slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")
    padded = np.asarray(ImageOps.pad(whole, (side, side), Image.Resampling.BOX)).astype(int)
    if whole.width > whole.height:
        view, padded = view.transpose(1, 0, 2), padded.transpose(1, 0, 2)
    bar = int(side * (1 - min(whole.size) / max(whole.size)) / 2)  # whole output pixels of black on each side
    assert bar > 5
    assert not view[:, :bar].any()
    assert not view[:, side - bar :].any()
    inside = np.s_[:, bar + 1 : side - bar - 1]
    assert view[inside].any(axis=(0, 2)).all()
    error, aside = (np.abs(view - image)[inside].mean() for image in (padded, np.roll(padded, 1, axis=0)))
    assert error < 4  # of 255: box and bilinear reductions differ at edges
    assert error < aside / 3
