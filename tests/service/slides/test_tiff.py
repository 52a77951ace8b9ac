"""Parsing of TIFF files, compared with tifffile; hostile headers are refused in limited time and memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile

from service.errors import SlideError, UnsupportedSlideError
from service.slides.tiff import MAX_DIRECTORIES, Tiff


def parse(data: bytes) -> Tiff:
    return Tiff(lambda offset, length: data[offset : offset + length], len(data))


def make_directory(entries: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    """Return a classic little-endian directory of (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tags_agree_with_tifffile(tmp_path: Path, big: bool, order: str) -> None:
    path = tmp_path / "x.tif"
    pixels = np.arange(96 * 80 * 3, dtype=np.uint8).reshape(96, 80, 3)
    with tifffile.TiffWriter(path, bigtiff=big, byteorder=order) as file:
        file.write(pixels, tile=(16, 32), subifds=1, description="a slide", metadata=None, resolution=(40000, 20000))
        file.write(pixels[::2, ::2], tile=(16, 32), subfiletype=1)
        file.write(pixels[:7], subfiletype=1, metadata=None)
    tiff = parse(path.read_bytes())
    assert tiff.big is big
    with tifffile.TiffFile(path) as reference:
        assert len(tiff.directories) == len(reference.pages) == 2
        for ours, theirs in zip(tiff.directories, reference.pages, strict=True):
            assert (ours.integer(256), ours.integer(257)) == (theirs.imagewidth, theirs.imagelength)
        offsets = tiff.directories[0].numbers(324)
        assert offsets.tolist() == list(reference.pages[0].dataoffsets)
    assert tiff.directories[0].text(270) == "a slide"
    assert tiff.directories[0].numbers(282).tolist() == [[40000, 1]]
    child = tiff.children(tiff.directories[0])[0]
    assert (child.integer(256), child.integer(257)) == (40, 48)


def test_files_that_are_not_tiff_are_unsupported() -> None:
    for data in (b"", b"II*", b"\xff\xd8\xff\xe0 a JPEG", bytes(100)):
        with pytest.raises(UnsupportedSlideError):
            parse(data)


def test_a_directory_loop_is_refused() -> None:
    first = make_directory([(256, 4, 1, 16)], following=8)
    with pytest.raises(SlideError, match="loop at byte 8"):
        parse(b"II*\0" + struct.pack("<I", 8) + first)


def test_a_million_images_are_refused_before_they_are_read() -> None:
    length = len(make_directory([(256, 4, 1, 16)]))
    chain = b"".join(make_directory([(256, 4, 1, 16)], following=8 + (n + 1) * length) for n in range(20_000))
    start_s = time.process_time()
    with pytest.raises(SlideError, match=f"more than {MAX_DIRECTORIES} images"):
        parse(b"II*\0" + struct.pack("<I", 8) + chain)
    assert time.process_time() - start_s < 1


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ((256, 4, 0xFFFFFFFF, 8), "truncated or damaged"),  # sixteen gigabytes of widths
        ((256, 4, 2, 0xFFFFFFF0), "truncated or damaged"),  # outside the file
        ((256, 5, 1, 8), "not an integer"),
        ((256, 2, 0, 0), "not an integer"),
        ((256, 99, 1, 0), "is missing"),  # an unknown type
    ],
)
def test_absurd_values_are_refused_without_memory(entry: tuple[int, int, int, int], reason: str) -> None:
    tiff = parse(b"II*\0" + struct.pack("<I", 8) + make_directory([entry]))
    tracemalloc.start()
    with pytest.raises(SlideError, match=reason):
        tiff.directories[0].integer(256)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_directory_outside_the_file_or_of_too_many_tags_is_refused() -> None:
    for offset in (7_000_000, 0xFFFFFFFF):
        with pytest.raises(SlideError, match="file ends at"):
            parse(b"II*\0" + struct.pack("<I", offset) + bytes(64))
    with pytest.raises(SlideError, match="65535 tags"):
        parse(b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(1 << 20))
    with pytest.raises(SlideError, match="has no image"):
        parse(b"II*\0" + bytes(64))
