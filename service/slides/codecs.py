"""Decoding of compressed tiles to RGB pixels; no decoder may produce more than the size given in the header."""

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
"""Grey value for places of a slide that were not scanned (missing tiles, transparent pixels): the white of empty
glass. OpenSlide leaves such pixels transparent, and its viewers draw them on white."""

NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, WEBP = 1, 5, 7, 8, 32946, 50001
APERIO_YCC, APERIO_RGB, JPEG2000 = 33003, 33005, 34712

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR = 0, 1, 2, 6


@dataclass(frozen=True, slots=True)
class TileCodec:
    """Storage format of the tiles of a level, with the values of the TIFF tags of the same names."""

    compression: int
    """Number of the compression method."""
    photometric: int
    """Number of the colour interpretation."""
    samples: int
    """Values per pixel: 1 for grey, 3 for RGB, 4 for RGB with alpha."""
    predictor: int
    """1 for none, 2 for the difference to the pixel on the left."""
    tile_px: tuple[int, int]
    """Width and height of every tile, including those at the border."""
    tables: bytes | None
    """Quantisation and Huffman tables shared by the level's JPEG tiles; None if each tile has its own."""

    def __post_init__(self) -> None:
        if self.compression not in _DECODERS:
            raise UnsupportedSlideError(f"unsupported compression {self.compression}")
        if self.samples not in (1, 3, 4) or self.predictor not in (1, 2):
            raise UnsupportedSlideError(f"unsupported: {self.samples} samples with predictor {self.predictor}")
        if self.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR):
            raise UnsupportedSlideError(f"unsupported photometric interpretation {self.photometric}")
        if self.photometric == YCBCR and self.compression in (NONE, LZW, DEFLATE, OLD_DEFLATE):
            raise UnsupportedSlideError("unsupported YCbCr colours without JPEG")

    @property
    def decoded_bytes(self) -> int:
        """Size in bytes of a decoded tile before conversion to RGB."""
        return self.tile_px[0] * self.tile_px[1] * self.samples

    def decode(self, data: bytes) -> Pixels:
        """Decode one tile.

        Args:
            data: compressed bytes.

        Returns:
            uint8 (tile height, tile width, 3), RGB.

        Raises:
            SlideError: the bytes are not a tile of this format and size.
        """
        try:
            pixels = _DECODERS[self.compression](self, data)
        except (RuntimeError, ValueError, struct.error) as error:
            raise SlideError(f"the tile's bytes cannot be decoded ({error}); the file is damaged") from error
        wide, high = self.tile_px
        if pixels.dtype != np.uint8 or pixels.shape[:2] != (high, wide):
            raise _size_error(pixels.shape[1], pixels.shape[0], self.tile_px)
        return self._to_rgb(pixels)

    def _to_rgb(self, pixels: Pixels) -> Pixels:
        bands = pixels.shape[2] if pixels.ndim == 3 else 1
        if bands == 3:
            return pixels
        if bands == 1:
            grey = pixels.reshape(pixels.shape[0], pixels.shape[1], 1)
            return np.repeat(255 - grey if self.photometric == WHITE_IS_ZERO else grey, 3, axis=2)
        if bands == 4:
            return blend_over_background(pixels[..., :3], pixels[..., 3:])
        raise SlideError(f"the tile has {bands} bands, not 1, 3 or 4; the file is damaged")


def blend_over_background(colour: Pixels, alpha: Pixels, background: int | tuple[int, int, int] = BACKGROUND) -> Pixels:
    """Blend colours with a background according to their alpha.

    Args:
        colour: uint8 (H, W, 3).
        alpha: uint8 (H, W, 1); 255 is opaque.
        background: grey value or RGB colour, 0 to 255.

    Returns:
        uint8 (H, W, 3).
    """
    weight = alpha.astype(np.uint16)
    ground = np.asarray(background, dtype=np.uint16)
    return ((colour * weight + ground * (255 - weight) + 127) // 255).astype(np.uint8)


def _decode_raw(codec: TileCodec, data: bytes) -> Pixels:
    return _undo_predictor(codec, data)


def _decode_lzw(codec: TileCodec, data: bytes) -> Pixels:
    # `out` limits the decoder here and below: kilobytes of a hostile file could expand to gigabytes.
    return _undo_predictor(codec, imagecodecs.lzw_decode(data, out=codec.decoded_bytes))


def _decode_deflate(codec: TileCodec, data: bytes) -> Pixels:
    return _undo_predictor(codec, imagecodecs.zlib_decode(data, out=codec.decoded_bytes))


def _undo_predictor(codec: TileCodec, data: bytes | bytearray) -> Pixels:
    if len(data) != codec.decoded_bytes:
        raise SlideError(f"the tile has {len(data)} bytes, not {codec.decoded_bytes}; the file is damaged")
    pixels = np.frombuffer(data, dtype=np.uint8).reshape(codec.tile_px[1], codec.tile_px[0], codec.samples)
    return imagecodecs.delta_decode(pixels, axis=1) if codec.predictor == 2 else pixels


def _decode_jpeg(codec: TileCodec, data: bytes) -> Pixels:
    # The decoder allocates memory for the declared size, so that is checked first, here and in the next decoders.
    _check_size(read_jpeg_size(data), codec.tile_px)
    if b"\xff\xd9" not in data[-_MAX_PADDING:]:  # libjpeg would fill the rest with grey without an error
        raise SlideError("the tile's JPEG stream ends early; the file is damaged")
    if codec.samples == 1:
        return imagecodecs.jpeg8_decode(data, tables=codec.tables)
    colours = "YCBCR" if codec.photometric == YCBCR else "RGB"  # Aperio scanners store RGB without conversion
    return imagecodecs.jpeg8_decode(data, tables=codec.tables, colorspace=colours, outcolorspace="RGB")


def _decode_jpeg2000(codec: TileCodec, data: bytes) -> Pixels:
    (wide, high), _ = read_jpeg2000_size(data)
    _check_size((wide, high), codec.tile_px)
    pixels = imagecodecs.jpeg2k_decode(data, planar=False)
    return ycbcr_to_rgb(pixels) if codec.compression == APERIO_YCC and pixels.ndim == 3 else pixels


def _decode_webp(codec: TileCodec, data: bytes) -> Pixels:
    _check_size(read_webp_size(data), codec.tile_px)
    return imagecodecs.webp_decode(data, hasalpha=codec.samples == 4)


_DECODERS: dict[int, Callable[[TileCodec, bytes], Pixels]] = {
    NONE: _decode_raw,
    LZW: _decode_lzw,
    DEFLATE: _decode_deflate,
    OLD_DEFLATE: _decode_deflate,
    JPEG: _decode_jpeg,
    APERIO_YCC: _decode_jpeg2000,
    APERIO_RGB: _decode_jpeg2000,
    JPEG2000: _decode_jpeg2000,
    WEBP: _decode_webp,
}

_MAX_PADDING = 64
"""Bytes at the end of a tile among which the end marker of its JPEG stream must be."""
_MAX_BOXES = 64
"""Boxes of a JPEG 2000 file that are searched for the codestream; the limit stops a search in a hostile file."""
_SIZ = b"\xff\x4f\xff\x51"
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MARKERS_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD9)) | {0x01}


def read_jpeg_size(data: bytes) -> tuple[int, int]:
    """Read the width and height from the header of a JPEG stream.

    Raises:
        SlideError: the bytes are not a JPEG stream.

    Source: ITU-T T.81, annex B (markers and their segments).
    """
    place = 2
    while data[:2] == b"\xff\xd8" and place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAME_MARKERS:
            high, wide = struct.unpack_from(">HH", data, place + 5)
            return wide, high
        if marker == 0xFF:  # fill byte
            place += 1
        elif marker in _MARKERS_WITHOUT_LENGTH:
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise SlideError("the tile is not a JPEG stream; the file is damaged")


def read_jpeg2000_size(data: bytes) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Read the width and height of a JPEG 2000 image, and the horizontal and vertical subsampling of its components.

    The codestream is located in the same way as in the decoder, so that a decoy elsewhere in the file has no effect.

    Raises:
        SlideError: the bytes are not a JPEG 2000 image, or have too many bands or a palette.

    Source: ITU-T T.800, A.5.1 (the SIZ segment follows the start of the codestream), annex I (boxes).
    """
    start = _find_codestream(data)
    if data[start : start + 4] != _SIZ or len(data) < start + 42:
        raise SlideError("the tile is not a JPEG 2000 stream; the file is damaged")
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    num = int.from_bytes(data[start + 40 : start + 42], "big")
    if num > 4:  # the format permits 16,384 bands, and each takes four bytes per decoded pixel
        raise SlideError(f"the tile has {num} bands, not 1, 3 or 4; the file is damaged")
    steps = data[start + 42 : start + 42 + 3 * num]
    return (right - left, bottom - top), list(zip(steps[1::3], steps[2::3], strict=False))


def _find_codestream(data: bytes) -> int:
    """Return the start of the codestream: 0 or in the first `jp2c` box; the length of the data if there is none."""
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


def read_webp_size(data: bytes) -> tuple[int, int]:
    """Read the width and height from the header of a WebP stream.

    Raises:
        SlideError: the bytes are not a WebP stream.

    Source: the WebP container specification (RIFF), chunks VP8, VP8L and VP8X.
    """
    kind = data[12:16]
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        raise SlideError("the tile is not a WebP stream; the file is damaged")
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    wide, high = struct.unpack_from("<HH", data, 26)
    return wide & 0x3FFF, high & 0x3FFF


def ycbcr_to_rgb(pixels: Pixels) -> Pixels:
    """Convert full-range YCbCr to RGB; both uint8 (H, W, 3).

    Source: ITU-T T.871, section 7 (the JFIF conversion).
    """
    luma, blue, red = np.moveaxis(pixels.astype(np.float32), 2, 0)
    blue, red = blue - 128, red - 128
    rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=2)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _check_size(size: tuple[int, int], tile_px: tuple[int, int]) -> None:
    if size != tile_px:
        raise _size_error(*size, tile_px)


def _size_error(wide: int, high: int, tile_px: tuple[int, int]) -> SlideError:
    return SlideError(f"the tile is {wide} x {high} pixels, not {tile_px[0]} x {tile_px[1]}; the file is damaged")
