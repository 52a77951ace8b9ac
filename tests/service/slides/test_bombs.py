"""Small files that declare or expand to gigabytes: refused in limited memory with an error that names the place.

Each is opened in a separate process whose address space may grow by 512 MiB.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from service.cohort.manifest import ManifestError, load_manifest
from service.cohort.outlines import read_asap, read_outlines
from service.errors import SlideError, UsageError
from service.slides.codecs import TileCodec, read_jpeg2000_size

TILE = (256, 256)
ROOT = Path(__file__).resolve().parents[3]
LIMITED = """
import resource, sys
from pathlib import Path
from service.slides.codecs import TileCodec
from service.errors import MagnetError
from service.cohort.manifest import load_manifest
from service.cohort.outlines import read_outlines
from service.slides.reader import RegionReader
what, path = sys.argv[1:]
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (512 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
try:
    if what == "manifest":
        load_manifest(path, need_labels=False)
    elif what == "outlines":
        read_outlines(path)
    elif what == "slide":
        with RegionReader(num_threads=1) as reader:
            reader.info(path)
    else:
        TileCodec(int(what), 6 if what == "7" else 2, 3, 1, (256, 256), None).decode(Path(path).read_bytes())
except MagnetError as error:
    print("refused:", error)
"""


def open_limited(what: str, path: Path) -> str:
    """Open a file in a process of limited memory and return its output."""
    argv = [sys.executable, "-c", LIMITED, what, str(path)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(argv, capture_output=True, text=True, check=False, env=env, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def make_jpeg2000_with_decoy() -> bytes:
    """Return a JP2 file of 20,000 x 20,000 pixels, with the header of a small image in a box before its image."""
    large = imagecodecs.jpeg2k_encode(np.zeros((20_000, 20_000), np.uint8), codecformat="jp2", level=0)
    small = imagecodecs.jpeg2k_encode(np.zeros((*TILE, 3), np.uint8), codecformat="j2k")
    box = struct.pack(">I4s16s", 24 + 120, b"uuid", b"x" * 16) + small[:120]
    place = large.find(b"jp2c") - 4
    return large[:place] + box + large[place:]


def make_jpeg2000_of_many_bands() -> bytes:
    """Return a JPEG 2000 tile whose header declares 16,384 bands."""
    small = imagecodecs.jpeg2k_encode(np.zeros((*TILE, 3), np.uint8), codecformat="j2k")
    end = 4 + struct.unpack(">H", small[4:6])[0]
    head = struct.pack(">H", 38 + 3 * 16_384) + small[6:40] + struct.pack(">H", 16_384) + b"\x07\x01\x01" * 16_384
    return small[:4] + head + small[end:]


def make_large_jpeg() -> bytes:
    """Return a small JPEG whose header declares twelve gigabytes of pixels."""
    small = bytearray(imagecodecs.jpeg8_encode(np.zeros((*TILE, 3), np.uint8)))
    place = small.find(b"\xff\xc0")
    small[place + 5 : place + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(small)


def make_large_webp() -> bytes:
    """Return a WebP file with a canvas of the tile's size that contains an image of 16,000 pixels per side."""
    image = imagecodecs.webp_encode(np.zeros((16_000, 16_000, 3), np.uint8), level=10)[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (255).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(image)) + b"WEBP" + canvas + image


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compression", "make", "message"),
    [
        (8, lambda: zlib.compress(bytes(1 << 30), 9), "cannot be decoded"),
        (33005, make_jpeg2000_with_decoy, "20000 x 20000 pixels"),
        (33003, make_jpeg2000_with_decoy, "20000 x 20000 pixels"),
        (34712, make_jpeg2000_of_many_bands, "16384 bands"),
        (7, make_large_jpeg, "65500 x 65500 pixels"),
        (50001, make_large_webp, "cannot be decoded"),
    ],
)
def test_a_tile_that_exceeds_its_declared_size_is_refused(
    tmp_path: Path, compression: int, make: Callable[[], bytes], message: str
) -> None:
    (tmp_path / "tile").write_bytes(make())
    assert (tmp_path / "tile").stat().st_size < 2 << 20
    assert message in open_limited(str(compression), tmp_path / "tile")


@pytest.mark.slow
def test_an_lzw_tile_is_decoded_no_further_than_its_size() -> None:
    data = imagecodecs.lzw_encode(bytes(64 << 20))
    assert TileCodec(5, 2, 3, 1, TILE, None).decode(data).nbytes == 256 * 256 * 3


def test_the_size_of_a_jpeg2000_image_is_read_where_its_decoder_reads_it() -> None:
    small = imagecodecs.jpeg2k_encode(np.zeros((40, 30, 3), np.uint8), codecformat="jp2", level=0)
    other = imagecodecs.jpeg2k_encode(np.zeros((*TILE, 3), np.uint8), codecformat="j2k")
    place = small.find(b"jp2c") - 4
    box = struct.pack(">I4s16s", 24 + 120, b"uuid", b"x" * 16) + other[:120]
    assert read_jpeg2000_size(small[:place] + box + small[place:])[0] == (30, 40)
    for broken in (b"", small[:20], small[:place], b"x" + other, small[:place] + struct.pack(">I4s", 1, b"free")):
        with pytest.raises(SlideError):
            read_jpeg2000_size(broken)


def test_a_palette_is_refused() -> None:
    data = imagecodecs.jpeg2k_encode(np.zeros((*TILE, 3), np.uint8), codecformat="jp2", level=0)
    start = data.find(b"jp2h") - 4
    length = int.from_bytes(data[start : start + 4], "big")
    palette = struct.pack(">I4s", 8, b"pclr")
    grown = struct.pack(">I", length + len(palette)) + data[start + 4 : start + length] + palette
    with pytest.raises(SlideError, match="palette"):
        read_jpeg2000_size(data[:start] + grown + data[start + length :])


@pytest.mark.slow
def test_a_slide_of_one_huge_tile_is_refused(tmp_path: Path) -> None:
    """Only OpenSlide supports this file; it would decode two gigabytes for one pixel and end the process."""
    path = tmp_path / "huge.tif"
    side = 24_576
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        blank = (bytes(imagecodecs.zlib_encode(bytes(side * side * 3), 6)) for _ in range(1))
        tiff.write(blank, shape=(side, side, 3), dtype="u1", tile=(side, side), compression="zlib", photometric="rgb")
    assert f"{side} x {side}" in open_limited("slide", path)


ENTITY = '<?xml version="1.0"?><!DOCTYPE l [{}]><A><Annotation PartOfGroup="x">{}</Annotation></A>'
LAUGHS = ENTITY.format(
    '<!ENTITY a0 "lol">' + "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 12)), "&a11;"
)
QUADRATIC = ENTITY.format(f'<!ENTITY a "{"x" * 100_000}">', "&a;" * 20_000)


@pytest.mark.parametrize("text", [LAUGHS, QUADRATIC])
def test_xml_entities_that_multiply_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="amplification"):
        read_asap(text.encode(), "s3://b/slide.xml")


@pytest.mark.parametrize("system", ["file:///etc/passwd", "http://127.0.0.1:1/x"])
def test_external_entities_are_not_read(system: str) -> None:
    with pytest.raises(UsageError, match="undefined entity"):
        read_asap(ENTITY.format(f'<!ENTITY a SYSTEM "{system}">', "&a;").encode(), "s3://b/slide.xml")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 2_000_000,
        '{"features":' * 100_000,
        '{"features": [{"properties": {"slide_id": "a"}, "geometry": {"type": "Polygon", "coordinates": %s}}]}'
        % ("[" * 900 + "]" * 900),
    ],
)
def test_deeply_nested_geojson_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.geojson"
    path.write_text(text)
    with pytest.raises(UsageError, match="is not a GeoJSON file of outlines"):
        read_outlines(str(path))


def test_files_over_the_size_limit_are_not_read(tmp_path: Path) -> None:
    """The files are sparse and have eight gigabytes."""
    for name in ("big.geojson", "big.csv", "folder/a.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with open(tmp_path / name, "wb") as file:
            file.truncate(8 << 30)
    for uri in (tmp_path / "big.geojson", f"{tmp_path}/folder/"):
        with pytest.raises(UsageError, match="8,589,934,592 bytes"):
            read_outlines(str(uri))
    with pytest.raises(UsageError, match="8,589,934,592 bytes"):
        load_manifest(str(tmp_path / "big.csv"), need_labels=False)


def write_repeated_cells(path: Path, cell: str, num: int) -> Path:
    """Write a Parquet table of two columns with the same cell in every row."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num, np.int32)), pa.array([cell]))
    pq.write_table(pa.table({"slide_id": column, "uri": column}), path, compression="zstd")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "num", "message"),
    [
        ("s" * 1000, 5_100_000, "5,100,000 rows, more than 5,000,000"),
        ("s" * 10_000_000, 5000, "a cell of 10,000,000 characters"),
    ],
)
def test_a_parquet_table_of_repeated_cells_is_refused(tmp_path: Path, cell: str, num: int, message: str) -> None:
    """A file of a few megabytes contains up to 50 GB."""
    path = write_repeated_cells(tmp_path / "m.parquet", cell, num)
    assert path.stat().st_size < 2 << 20
    assert message in open_limited("manifest", path)


def test_a_parquet_table_with_too_many_characters_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cohort.bounded_files.TABLE_CHARACTERS", 1_000_000)
    with pytest.raises(ManifestError, match="holds more than 1,000,000 characters"):
        load_manifest(str(write_repeated_cells(tmp_path / "m.parquet", "s" * 1000, 501)), need_labels=False)


@pytest.mark.parametrize("cell", [["a"], b"a", {"x": "a"}])
def test_parquet_cells_whose_texts_cannot_be_bounded_are_refused(tmp_path: Path, cell: object) -> None:
    pq.write_table(pa.table({"slide_id": [cell], "uri": ["x"]}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"column slide_id\S* holds bytes or lists of texts"):
        load_manifest(str(tmp_path / "m.parquet"), need_labels=False)


def test_a_geojson_outline_without_coordinates_is_empty(tmp_path: Path) -> None:
    feature = {"properties": {"slide_id": "a"}, "geometry": {"type": "Polygon", "coordinates": []}}
    (tmp_path / "a.geojson").write_text(json.dumps({"features": [feature]}))
    assert read_outlines(str(tmp_path / "a.geojson"))["a"].is_empty
