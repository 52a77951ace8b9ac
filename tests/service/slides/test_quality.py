"""Which slides the quality check refuses: real slides and generated ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from service.slides.quality import GateSettings, Quality, SlideRefusedError, inspect, measure_sharpness
from service.slides.reader import RegionReader

SIDE = 1024
GLASS = (244, 243, 246)


def inspect_path(path: Path, **settings: Any) -> Quality:
    with RegionReader(num_threads=2) as reader:
        return inspect(reader, str(path), GateSettings(**settings))


def catch_refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(SlideRefusedError) as caught:
        inspect_path(path, **settings)
    assert caught.value.uri == str(path)
    return caught.value.message


@pytest.mark.parametrize(
    "name",
    ["cmu-1-small-region.svs", "cmu-1-small-region-pyramid.svs", "he-two-pieces.tif", "tcga-cr-7395-01a-01-ts1.svs"],
)
def test_real_slides_of_h_and_e_pass(test_data: Path, name: str) -> None:
    quality = inspect_path(test_data / "slides" / name)
    assert quality.stain > 0.95
    assert quality.pen < 0.01
    assert quality.sharpness is not None
    assert quality.sharpness > 0.9
    assert quality.counters.requests > 0


def test_fluorescence_is_a_wrong_stain(test_data: Path) -> None:
    assert "wrong stain: 77% of the slide is black" in catch_refusal(test_data / "slides" / "fluorescence-dapi.ndpi")


@pytest.mark.parametrize("name", ["lymph-node-jpeg.dcm", "boxes-deflate.tiff"])
def test_odd_pixel_sizes_are_refused_before_anything_is_read(test_data: Path, name: str) -> None:
    assert "unusual pixel size" in catch_refusal(test_data / "slides" / name)


def test_a_missing_pixel_size_is_refused_if_it_is_required(test_data: Path) -> None:
    path = test_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    assert inspect_path(path).tissue_mm2 is None
    assert "has no pixel size (gate.require_mpp)" in catch_refusal(path, require_mpp=True)


@pytest.fixture(scope="module")
def tissue(test_data: Path) -> Image.Image:
    """Return an image of glass with a square of real tissue of 512 px, at 1 um per pixel."""
    tiles = sorted((test_data / "tiles" / "tumor").iterdir())[:16]
    slide = Image.new("RGB", (SIDE, SIDE), GLASS)
    for n, path in enumerate(tiles):
        with Image.open(path) as tile:
            slide.paste(tile.convert("RGB").reduce(2), (256 + n % 4 * 128, 256 + n // 4 * 128))
    return slide


def write_slide(path: Path, image: Image.Image | NDArray[np.uint8], mpp: float | None = 1.0) -> Path:
    scale: dict[str, Any] = (
        {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    )
    tifffile.imwrite(path, np.asarray(image), tile=(256, 256), compression="zlib", metadata=None, **scale)
    return path


def test_tissue_on_glass_passes(tissue: Image.Image, tmp_path: Path) -> None:
    quality = inspect_path(write_slide(tmp_path / "s.tif", tissue))
    assert quality.tissue == pytest.approx(0.25, abs=0.03)
    assert quality.tissue_mm2 == pytest.approx(0.262, abs=0.03)


def test_an_empty_glass_is_blank(tmp_path: Path) -> None:
    assert "blank" in catch_refusal(write_slide(tmp_path / "s.tif", Image.new("RGB", (SIDE, SIDE), GLASS)))


def test_a_small_piece_is_too_little_tissue(tissue: Image.Image, tmp_path: Path) -> None:
    slide = Image.new("RGB", (SIDE, SIDE), GLASS)
    slide.paste(tissue.crop((300, 300, 360, 360)), (500, 500))
    path = write_slide(tmp_path / "s.tif", slide)
    assert "too little tissue: 0.00" in catch_refusal(path)
    assert "too little tissue: 0.3" in catch_refusal(path, min_tissue=0.05)
    assert inspect_path(path, min_tissue_mm2=0.001, probes=0).sharpness is None


def test_a_slide_out_of_focus_is_refused(tissue: Image.Image, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", tissue.filter(ImageFilter.GaussianBlur(2)))
    assert "blurred: sharpness 0." in catch_refusal(path)
    assert inspect_path(path, min_sharpness=0.01).sharpness == pytest.approx(0.15, abs=0.1)


@pytest.mark.parametrize("ink", [(20, 140, 60), (30, 60, 190), (215, 30, 40), (45, 45, 48)])
def test_a_slide_covered_with_pen_marks_is_refused(
    tissue: Image.Image, tmp_path: Path, ink: tuple[int, int, int]
) -> None:
    slide = tissue.copy()
    draw = ImageDraw.Draw(slide)
    for y in range(60, 1000, 120):
        draw.line((40, y, 980, y + 30), fill=ink, width=36)
    assert "pen marks" in catch_refusal(write_slide(tmp_path / "s.tif", slide))
    touched = tissue.copy()
    ImageDraw.Draw(touched).line((60, 60, 300, 80), fill=ink, width=20)
    assert 0.005 < inspect_path(write_slide(tmp_path / "t.tif", touched)).pen < 0.05


def test_another_stain_is_refused(tissue: Image.Image, tmp_path: Path) -> None:
    brown = np.asarray(tissue).copy()
    inside = brown[256:768, 256:768].astype(float).mean(axis=-1, keepdims=True) / 255
    brown[256:768, 256:768] = np.clip(inside * (235, 185, 120) + 20, 0, 255)  # the colour of DAB
    assert "wrong stain: 0% of the tissue has the colours of H&E" in catch_refusal(
        write_slide(tmp_path / "s.tif", brown)
    )


def test_sharpness_does_not_follow_brightness_or_contrast() -> None:
    image = np.random.default_rng(0).integers(60, 200, (64, 64, 3)).astype(np.uint8)
    assert measure_sharpness((image // 2 + 60).astype(np.uint8)) == pytest.approx(measure_sharpness(image), rel=0.02)
    # The variance of the Laplacian of white noise is 16 + 4 times that of the noise.
    assert measure_sharpness(image) == pytest.approx(np.sqrt(20), rel=0.05)


@pytest.mark.parametrize("wrong", [{"max_pen": 2}, {"probes": -1}, {"min_mpp": 0}, {"min_mpp": 3}])
def test_settings_out_of_range_are_errors(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GateSettings(**wrong)  # type: ignore[arg-type]  # wrong on purpose
