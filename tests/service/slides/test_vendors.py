"""Vendor formats: which images are levels, how levels are aligned, and the pixel size."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from magnet.windows import WindowRequest
from service.errors import SlideError
from service.slides.reader import RegionReader

TILE = 64
PHILIPS = """<?xml version="1.0"?><DataObject ObjectType="DPUfsImport"><Attribute Name="DICOM_PIXEL_SPACING">
&quot;0.000227&quot; &quot;0.000226&quot;</Attribute></DataObject>"""


def make_plain(size: tuple[int, int], value: int) -> NDArray[np.uint8]:
    return np.full((size[1], size[0], 3), value, np.uint8)


def test_padded_levels_of_philips_stay_aligned(tmp_path: Path) -> None:
    """A line must be at the same place of the slide on each level."""
    whole = (7 * TILE, 5 * TILE)
    with tifffile.TiffWriter(tmp_path / "x.tiff") as file:
        for n, step in enumerate([1, 2, 4]):
            wide, high = (-(-side // step) for side in whole)
            level = make_plain((-(-wide // TILE) * TILE, -(-high // TILE) * TILE), 255)
            level[:high, :wide] = 60
            level[:high, 320 // step : 328 // step] = 200
            file.write(
                level,
                tile=(TILE, TILE),
                compression="zlib",
                subfiletype=int(n > 0),
                software="Philips DP v1.0",
                description=PHILIPS if n == 0 else f"level={n}",
                metadata=None,
            )
        file.write(make_plain((60, 40), 10), description="Label", metadata=None)
        file.write(make_plain((80, 40), 10), description="Macro", metadata=None)
    with RegionReader() as reader:
        batch = reader.batch([str(tmp_path / "x.tiff")])
        info = batch.info[0]
        assert info.format == "philips-tiff"
        assert [(level.size_px, level.downsample) for level in info.levels] == [
            ((448, 320), 1.0),
            ((224, 160), 2.0),
            ((112, 80), 4.0),
        ]
        assert info.mpp_xy == pytest.approx((0.226, 0.227))
        for out_px, step in ((448, 1), (224, 2), (112, 4)):
            windows = batch.fetch(WindowRequest(0, np.zeros(1, np.int64), np.array([[1.0, 0, 0]]), out_px, 0))
            assert windows.level[0] == step
            row = windows.pixels[0, out_px // 2, :, 0]
            lit = np.flatnonzero(row == 200)
            edges = windows.place[0, 0] + np.array([lit[0], lit[-1] + 1]) * windows.place[0, 2]
            assert (edges + 1) * 224 == pytest.approx([320, 328])
            assert 255 not in row  # the padding is not part of the slide


@pytest.mark.parametrize("samples", [3, 1])
def test_levels_of_ome_tiff_are_the_sub_images_of_the_first(tmp_path: Path, samples: int) -> None:
    shape = (200, 300, 3) if samples == 3 else (200, 300)
    rng = np.random.default_rng(0)
    level0 = rng.integers(0, 256, shape, dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", ome=True) as file:
        metadata = {
            "PhysicalSizeX": 250.0,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.5,
            "PhysicalSizeYUnit": "\u00b5m",
        }
        file.write(level0, tile=(64, 64), subifds=2, compression="lzw", predictor=True, metadata=metadata)
        file.write(level0[::2, ::2], tile=(64, 64), subfiletype=1, compression="lzw", predictor=True)
        file.write(level0[::4, ::4], tile=(64, 64), subfiletype=1, compression="lzw", predictor=True)
        file.write(make_plain((90, 60), 7), tile=(64, 64), metadata={"Name": "label"})
    with RegionReader() as reader:
        info = reader.info(str(tmp_path / "x.ome.tif"))
        thumbnail = reader.thumbnail(str(tmp_path / "x.ome.tif"), 300)
    assert info.format == "ome-tiff"
    assert [level.size_px for level in info.levels] == [(300, 200), (150, 100), (75, 50)]
    assert info.mpp_xy == pytest.approx((0.25, 0.5))
    np.testing.assert_array_equal(thumbnail, level0 if samples == 3 else np.repeat(level0[..., None], 3, axis=2))


def test_fluorescence_channels_are_refused_not_shown_as_grey(tmp_path: Path) -> None:
    channels = np.zeros((3, 128, 128), np.uint8)
    tifffile.imwrite(
        tmp_path / "x.ome.tif", channels, tile=(64, 64), metadata={"axes": "CYX"}, photometric="minisblack"
    )
    with RegionReader() as reader, pytest.raises(SlideError, match="3 separate channels"):
        reader.info(str(tmp_path / "x.ome.tif"))


def test_aperios_thumbnail_label_and_macro_are_no_levels_even_if_tiled(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.svs") as file:
        head = "Aperio Image Library v11.2.1 \r\n"
        for size, text, kind in (
            ((400, 300), "400x300 (64x64) JPEG|AppMag = 20|MPP = 0.4990", 0),
            ((100, 75), "400x300 -> 100x75", 0),
            ((120, 90), "label 120x90", 1),
            ((200, 150), "macro 200x150", 9),
            ((130, 40), "another image", 0),
        ):
            tiled = {"tile": (64, 64)}
            file.write(make_plain(size, 99), description=head + text, subfiletype=kind, metadata=None, **tiled)
    with RegionReader() as reader:
        info = reader.info(str(tmp_path / "x.svs"))
    assert info.format == "aperio-svs"
    assert [level.size_px for level in info.levels] == [(400, 300), (100, 75)]
    assert info.mpp_xy == (0.499, 0.499)


@pytest.mark.parametrize("mpp", ["0", "-1", "nan", "1e99", "a lot"])
def test_an_invalid_pixel_size_counts_as_unknown(tmp_path: Path, mpp: str) -> None:
    path = tmp_path / "x.svs"
    tifffile.imwrite(path, make_plain((99, 99), 9), tile=(64, 64), description=f"Aperio\n|MPP = {mpp}", metadata=None)
    with RegionReader() as reader:
        assert reader.info(str(path)).mpp_xy is None


def test_no_text_of_the_header_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.svs"
    text = "Aperio\n|Patient = Jane Roe|MPP = 0.5"
    tifffile.imwrite(path, make_plain((99, 99), 9), tile=(64, 64), description=text, metadata=None)
    with RegionReader() as reader:
        assert "Jane" not in repr(reader.info(str(path)))


@pytest.mark.parametrize("compression", [33003, 33005])
def test_aperios_jpeg2000_is_read_in_place(tmp_path: Path, compression: int) -> None:
    pixels = np.random.default_rng(0).integers(100, 140, (TILE, TILE, 3), dtype=np.uint8)
    stream = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="J2K", mct=compression == 33005)
    with tifffile.TiffWriter(tmp_path / "x.svs") as file:
        file.write(
            iter([stream]),
            shape=pixels.shape,
            dtype=np.uint8,
            tile=(TILE, TILE),
            compression=compression,
            photometric="rgb",
            description="Aperio",
            metadata=None,
        )
    with RegionReader() as reader:
        assert reader.info(str(tmp_path / "x.svs")).format == "aperio-svs"
        thumbnail = reader.thumbnail(str(tmp_path / "x.svs"), TILE)
    same = np.array_equal(thumbnail, pixels)
    assert same is (compression == 33005)  # the other one is YCbCr and is converted
