"""Compressed tile in, RGB pixels out, each decoder held to the size that the header promised."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from service.errors import SlideError, UnsupportedSlideError

Pixels = NDArray[np.uint8]

BACKGROUND = 255
"""Grey value inside a slide where nothing was scanned (missing tiles, transparent pixels): the white of an empty
glass. OpenSlide leaves such pixels transparent and its viewers lay them on white."""

NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, WEBP = 1, 5, 7, 8, 32946, 50001
APERIO_YCC, APERIO_RGB, JPEG2000 = 33003, 33005, 34712

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR = 0, 1, 2, 6


@dataclass(frozen=True, slots=True)
class TileCodec:
    """How the tiles of a level are stored (values as in the TIFF tags of these names)."""

    compression: int
    photometric: int
    samples: int
    """Values of a pixel: 1 grey, 3 RGB, 4 with alpha."""
    predictor: int
    """1 none, 2 difference to the pixel on the left."""
    tile_px: tuple[int, int]
    """Width and height of every tile, those at the border included."""
    tables: bytes | None
    """Tables that the level's JPEG tiles share."""

    def __post_init__(self) -> None:
        if self.compression not in _DECODERS:
            raise UnsupportedSlideError(f"compression {self.compression} is none that can be read in place")
        if self.samples not in (1, 3, 4) or self.predictor not in (1, 2):
            raise UnsupportedSlideError(f"{self.samples} samples, predictor {self.predictor} cannot be read in place")
        if self.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR):
            raise UnsupportedSlideError(f"photometric interpretation {self.photometric} cannot be read in place")
        if self.photometric == YCBCR and self.compression in (NONE, LZW, DEFLATE, OLD_DEFLATE):
            raise UnsupportedSlideError("YCbCr without JPEG cannot be read in place")

    @property
    def decoded_bytes(self) -> int:
        """Bytes of a decoded tile before it is made RGB."""
        return self.tile_px[0] * self.tile_px[1] * self.samples

    def decode(self, data: bytes) -> Pixels:
        """One tile's pixels.

        Returns:
            uint8 (tile height, tile width, 3), RGB.

        Raises:
            SlideError: the bytes are no tile of this kind and size.
        """
        try:
            pixels = _DECODERS[self.compression](self, data)
        except (RuntimeError, ValueError, struct.error) as error:
            raise SlideError(f"the tile's bytes cannot be decoded ({error}); the file is damaged") from error
        wide, high = self.tile_px
        if pixels.dtype != np.uint8 or pixels.shape[:2] != (high, wide):
            raise _wrong_size(pixels.shape[1], pixels.shape[0], self.tile_px)
        return self._as_rgb(pixels)

    def _as_rgb(self, pixels: Pixels) -> Pixels:
        bands = pixels.shape[2] if pixels.ndim == 3 else 1
        if bands == 3:
            return pixels
        if bands == 1:
            grey = pixels.reshape(pixels.shape[0], pixels.shape[1], 1)
            return np.repeat(255 - grey if self.photometric == WHITE_IS_ZERO else grey, 3, axis=2)
        if bands == 4:
            return over_background(pixels[..., :3], pixels[..., 3:])
        raise SlideError(f"the tile holds {bands} bands, not 1, 3 or 4; the file is damaged")


def over_background(colour: Pixels, alpha: Pixels, background: int | tuple[int, int, int] = BACKGROUND) -> Pixels:
    """Colours laid on the background by their alpha; all uint8 (H, W, 3), alpha (H, W, 1)."""
    weight = alpha.astype(np.uint16)
    ground = np.asarray(background, dtype=np.uint16)
    return ((colour * weight + ground * (255 - weight) + 127) // 255).astype(np.uint8)


def _uncompressed(codec: TileCodec, data: bytes) -> Pixels:
    return _unpredicted(codec, data)


def _lzw(codec: TileCodec, data: bytes) -> Pixels:
    return _unpredicted(codec, imagecodecs.lzw_decode(data, out=codec.decoded_bytes))


def _deflate(codec: TileCodec, data: bytes) -> Pixels:
    return _unpredicted(codec, imagecodecs.zlib_decode(data, out=codec.decoded_bytes))


def _unpredicted(codec: TileCodec, data: bytes | bytearray) -> Pixels:
    if len(data) != codec.decoded_bytes:
        raise SlideError(f"the tile holds {len(data)} bytes, not {codec.decoded_bytes}; the file is damaged")
    pixels = np.frombuffer(data, dtype=np.uint8).reshape(codec.tile_px[1], codec.tile_px[0], codec.samples)
    return imagecodecs.delta_decode(pixels, axis=1) if codec.predictor == 2 else pixels


def _jpeg(codec: TileCodec, data: bytes) -> Pixels:
    _check_size(jpeg_size(data), codec.tile_px)
    if b"\xff\xd9" not in data[-_MAX_PADDING:]:  # libjpeg would fill up with grey and say nothing
        raise SlideError("the tile's JPEG stream ends early; the file is damaged")
    if codec.samples == 1:
        return imagecodecs.jpeg8_decode(data, tables=codec.tables)
    colours = "YCBCR" if codec.photometric == YCBCR else "RGB"  # Aperio's scanners store RGB without conversion
    return imagecodecs.jpeg8_decode(data, tables=codec.tables, colorspace=colours, outcolorspace="RGB")


def _jpeg2000(codec: TileCodec, data: bytes) -> Pixels:
    (wide, high), _ = jpeg2000_size(data)
    _check_size((wide, high), codec.tile_px)
    pixels = imagecodecs.jpeg2k_decode(data, planar=False)
    return ycbcr_to_rgb(pixels) if codec.compression == APERIO_YCC and pixels.ndim == 3 else pixels


def _webp(codec: TileCodec, data: bytes) -> Pixels:
    _check_size(webp_size(data), codec.tile_px)
    return imagecodecs.webp_decode(data, hasalpha=codec.samples == 4)


_DECODERS: dict[int, Callable[[TileCodec, bytes], Pixels]] = {
    NONE: _uncompressed,
    LZW: _lzw,
    DEFLATE: _deflate,
    OLD_DEFLATE: _deflate,
    JPEG: _jpeg,
    APERIO_YCC: _jpeg2000,
    APERIO_RGB: _jpeg2000,
    JPEG2000: _jpeg2000,
    WEBP: _webp,
}

_MAX_PADDING = 64
_MAX_BOXES = 64
_SIZ = b"\xff\x4f\xff\x51"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset(range(0xD0, 0xD9)) | {0x01}


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height that a JPEG stream declares.

    Source: ITU-T T.81, annex B (markers and their segments).
    """
    place = 2
    while data[:2] == b"\xff\xd8" and place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAMES:
            high, wide = struct.unpack_from(">HH", data, place + 5)
            return wide, high
        if marker == 0xFF:  # fill byte
            place += 1
        elif marker in _BARE:
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise SlideError("the tile is no JPEG stream; the file is damaged")


def jpeg2000_size(data: bytes) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Width and height of a JPEG 2000 image, and each component's horizontal and vertical subsampling.

    The codestream is found as the decoder finds it; what looks like one elsewhere in the file is ignored.

    Source: ITU-T T.800, A.5.1 (the SIZ segment follows the start of the codestream), annex I (boxes).
    """
    start = _codestream(data)
    if data[start : start + 4] != _SIZ or len(data) < start + 42:
        raise SlideError("the tile is no JPEG 2000 stream; the file is damaged")
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    num = int.from_bytes(data[start + 40 : start + 42], "big")
    if num > 4:  # up to 16384 are possible, each decoded to four bytes a pixel
        raise SlideError(f"the tile holds {num} bands, not 1, 3 or 4; the file is damaged")
    steps = data[start + 42 : start + 42 + 3 * num]
    return (right - left, bottom - top), list(zip(steps[1::3], steps[2::3], strict=False))


def _codestream(data: bytes) -> int:
    """Where a JPEG 2000 codestream starts: at once, or in the first `jp2c` box; the end where there is none."""
    if data[:8] != b"\0\0\0\x0cjP  ":
        return 0
    place = 0
    for _ in range(_MAX_BOXES):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        head = 16 if length == 1 else 8
        length = int.from_bytes(data[place + 8 : place + 16], "big") if length == 1 else length
        if kind == b"jp2c":
            return place + head
        if kind == b"jp2h" and b"pclr" in data[place : place + length]:
            raise SlideError("the tile has a palette, which can multiply its size; the file is damaged")
        if length < head or place + length >= len(data):
            break
        place += length
    return len(data)


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height that a WebP stream declares.

    Source: the WebP container specification (RIFF), chunks VP8, VP8L and VP8X.
    """
    kind = data[12:16]
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        raise SlideError("the tile is no WebP stream; the file is damaged")
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    wide, high = struct.unpack_from("<HH", data, 26)
    return wide & 0x3FFF, high & 0x3FFF


def ycbcr_to_rgb(pixels: Pixels) -> Pixels:
    """Full-range YCbCr as RGB; uint8 (H, W, 3).

    Source: ITU-T T.871, section 7 (the JFIF conversion).
    """
    luma, blue, red = np.moveaxis(pixels.astype(np.float32), 2, 0)
    blue, red = blue - 128, red - 128
    rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=2)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _check_size(size: tuple[int, int], tile_px: tuple[int, int]) -> None:
    if size != tile_px:
        raise _wrong_size(*size, tile_px)


def _wrong_size(wide: int, high: int, tile_px: tuple[int, int]) -> SlideError:
    return SlideError(f"the tile is {wide} x {high} pixels, not {tile_px[0]} x {tile_px[1]}; the file is damaged")
