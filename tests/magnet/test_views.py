"""Grey filter, tissue mask and size of views."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import openslide
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from magnet.views import area_pool, grey_filter, tissue_mask


def as_view(colours: list[tuple[int, int, int]]) -> torch.Tensor:
    """Return one row of pixels as a view; (1, 3, 1, W)."""
    return (torch.tensor(colours, dtype=torch.float32) / 255).T[None, :, None, :]


def test_a_pixel_is_grey_if_all_three_differences_are_within_the_tolerance() -> None:
    # every combination near the limit, at several brightnesses, computed in whole numbers
    colours = [
        (base, base + a, base + b)
        for base in (20, 101, 230)
        for a, b in product((-16, -15, -8, 0, 7, 15, 16), repeat=2)
    ]
    filtered = grey_filter(as_view(colours))[0, :, 0].T
    for (r, g, b), out in zip(colours, filtered, strict=True):
        grey = abs(r - g) <= 15 and abs(r - b) <= 15 and abs(g - b) <= 15
        expected = torch.zeros(3) if grey else torch.tensor([r, g, b]) / 255
        torch.testing.assert_close(out, expected.float())


def test_the_gradient_reaches_only_pixels_that_are_kept() -> None:
    view = as_view([(200, 100, 150), (128, 130, 125)]).requires_grad_()
    grey_filter(view).sum().backward()
    torch.testing.assert_close(view.grad, torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2))


def test_tissue_is_neither_black_nor_grey_nor_glass() -> None:
    colours = {
        (0, 0, 0): False,  # padding
        (14, 0, 3): False,  # padding after lossy compression
        (255, 255, 255): False,
        (242, 240, 244): False,  # glass
        (243, 238, 222): False,  # yellowish glass: coloured, but light
        (120, 122, 125): False,  # dust, shadow
        (228, 190, 214): True,  # pale eosin
        (190, 110, 170): True,
        (80, 50, 120): True,  # dense nuclei
    }
    assert tissue_mask(as_view(list(colours)))[0, 0].tolist() == list(colours.values())


def test_the_tissue_of_a_real_slide_is_darker_than_the_rest(test_data: Path) -> None:
    with openslide.OpenSlide(test_data / "slides" / "cmu-1-small-region.svs") as slide:
        thumbnail = slide.get_thumbnail((112, 112)).convert("RGB")
    view = torch.from_numpy(np.array(thumbnail)).permute(2, 0, 1)[None] / 255
    grey = view.mean(1)
    mask = tissue_mask(view)
    assert mask.float().mean() > 0.2
    assert grey[mask].mean() < grey[~mask].mean() - 0.1


def test_real_tiles_are_tissue(test_data: Path) -> None:
    tiles = sorted((test_data / "tiles" / "tumor").iterdir())[:5]
    for tile in tiles:
        with Image.open(tile) as image:
            view = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255
        assert tissue_mask(view).float().mean() > 0.7, tile.name


def test_area_pool_averages_blocks() -> None:
    view = torch.rand(2, 3, 112, 112, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blocks = view.numpy().reshape(2, 3, 56, 2, 56, 2).mean((3, 5))
    np.testing.assert_allclose(area_pool(view, 56).numpy(), blocks, atol=1e-15)
    with pytest.raises(ValueError, match="multiple of 50"):
        area_pool(view, 50)


def test_area_pooling_to_half_the_size_equals_bilinear_resizing() -> None:
    view = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    resized = F.interpolate(view, (56, 56), mode="bilinear", align_corners=False)
    torch.testing.assert_close(area_pool(view, 56), resized)
