"""Decoded tiles compared with the encoded pixels and with other decoders."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.errors import SlideError, UnsupportedSlideError
from service.slides.codecs import TileCodec, blend_over_background, read_jpeg2000_size, read_jpeg_size, read_webp_size

WIDE, HIGH = 48, 32


def make_image(bands: int = 3) -> NDArray[np.uint8]:
    y, x = np.mgrid[:HIGH, :WIDE]
    waves = [np.sin(x / 7 + b) * np.cos(y / 5 - b) for b in range(bands)]
    return np.stack([(127 + 120 * wave).astype(np.uint8) for wave in waves], axis=2)


def make_codec(compression: int, photometric: int = 2, samples: int = 3, predictor: int = 1) -> TileCodec:
    return TileCodec(compression, photometric, samples, predictor, (WIDE, HIGH), None)


def encode_differences(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([pixels[:, :1], pixels[:, 1:] - pixels[:, :-1]], axis=1)


@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize("compression", [1, 5, 8, 32946])
def test_lossless_tiles_are_decoded_exactly(compression: int, predictor: int) -> None:
    pixels = make_image()
    raw = (encode_differences(pixels) if predictor == 2 else pixels).tobytes()
    encoders = {1: bytes, 5: imagecodecs.lzw_encode, 8: imagecodecs.zlib_encode, 32946: imagecodecs.zlib_encode}
    decoded = make_codec(compression, predictor=predictor).decode(encoders[compression](raw))
    np.testing.assert_array_equal(decoded, pixels)


def test_lossless_jpeg2000_and_webp_are_decoded_exactly() -> None:
    pixels = make_image()
    for compression in (33005, 34712):
        stream = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="J2K")
        np.testing.assert_array_equal(make_codec(compression).decode(stream), pixels)
    np.testing.assert_array_equal(make_codec(50001).decode(imagecodecs.webp_encode(pixels, lossless=True)), pixels)


def test_aperios_ycbcr_jpeg2000_agrees_with_pillows_colour_conversion() -> None:
    pixels = make_image()
    ycbcr = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    stream = imagecodecs.jpeg2k_encode(ycbcr, level=0, codecformat="J2K", mct=False)
    reference = np.asarray(Image.frombytes("YCbCr", (WIDE, HIGH), ycbcr.tobytes()).convert("RGB"))
    assert np.abs(make_codec(33003).decode(stream).astype(int) - reference).max() <= 1  # Pillow rounds down


def test_jpeg_agrees_with_pillow_and_rgb_jpeg_is_not_converted() -> None:
    pixels = make_image()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=90, subsampling=0)
    reference = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    np.testing.assert_array_equal(make_codec(7, photometric=6).decode(file.getvalue()), reference)
    plain = imagecodecs.jpeg8_encode(pixels, level=95, colorspace="RGB", outcolorspace="RGB")
    assert np.abs(make_codec(7, photometric=2).decode(plain).astype(int) - pixels).mean() < 2
    assert (
        np.abs(make_codec(7, photometric=6).decode(plain).astype(int) - pixels).mean() > 20
    )  # the effect of confusing them


def test_grey_and_alpha_become_rgb() -> None:
    grey = make_image(1)
    np.testing.assert_array_equal(make_codec(1, 1, 1).decode(grey.tobytes()), np.repeat(grey, 3, axis=2))
    np.testing.assert_array_equal(make_codec(1, 0, 1).decode(grey.tobytes()), np.repeat(255 - grey, 3, axis=2))
    rgba = make_image(4)
    rgba[:, :24, 3], rgba[:, 24:, 3] = 0, 255
    decoded = make_codec(1, 2, 4).decode(rgba.tobytes())
    assert (decoded[:, :24] == 255).all()
    np.testing.assert_array_equal(decoded[:, 24:], rgba[:, 24:, :3])


def test_half_transparent_pixels_are_blended_with_the_background() -> None:
    colour, alpha = np.full((1, 1, 3), 100, np.uint8), np.full((1, 1, 1), 51, np.uint8)
    assert blend_over_background(colour, alpha).tolist() == [[[224, 224, 224]]]  # 100 / 5 + 255 * 4 / 5


@pytest.mark.parametrize("compression", [1, 5, 7, 8, 33003, 33005, 34712, 50001])
@pytest.mark.parametrize("data", [b"", b"\0" * 40, b"\xff\xd8\xff\xdb", b"RIFF0000WEBPVP8 " + bytes(30)])
def test_garbage_is_refused(compression: int, data: bytes) -> None:
    with pytest.raises(SlideError):
        make_codec(compression).decode(data)


def test_a_truncated_jpeg_is_refused_although_libjpeg_would_fill_it_with_grey() -> None:
    stream = imagecodecs.jpeg8_encode(make_image(), level=90)
    with pytest.raises(SlideError, match="ends early"):
        make_codec(7, 6).decode(stream[: len(stream) // 2])


def test_tiles_of_another_size_are_refused_before_they_are_decoded() -> None:
    large = np.zeros((4096, 4096, 3), np.uint8)
    streams = {
        7: imagecodecs.jpeg8_encode(large),
        33005: imagecodecs.jpeg2k_encode(large[:512, :512], level=0, codecformat="J2K"),
        50001: imagecodecs.webp_encode(large),
    }
    for compression, stream in streams.items():
        with pytest.raises(SlideError, match="not 48 x 32"):
            make_codec(compression).decode(stream)
    with pytest.raises(SlideError, match="Z_BUF_ERROR"):  # fifty megabytes compressed to fifty kilobytes
        make_codec(8).decode(imagecodecs.zlib_encode(large.tobytes()))


def test_declared_sizes_are_read_from_the_streams() -> None:
    pixels = make_image()
    assert read_jpeg_size(imagecodecs.jpeg8_encode(pixels)) == (WIDE, HIGH)
    for kind in ("J2K", "JP2"):
        size, steps = read_jpeg2000_size(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat=kind))
        assert size == (WIDE, HIGH)
        assert steps == [(1, 1)] * 3
    assert read_webp_size(imagecodecs.webp_encode(pixels, lossless=True)) == (WIDE, HIGH)
    assert read_webp_size(imagecodecs.webp_encode(pixels, level=80)) == (WIDE, HIGH)


def test_unknown_compression_is_left_to_openslide() -> None:
    with pytest.raises(UnsupportedSlideError, match="52479"):
        make_codec(52479)
