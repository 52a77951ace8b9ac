"""Windows of slides: geometry by colours that encode positions, pixels compared with OpenSlide, bad files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from magnet.regions import from_level0
from magnet.windows import Windows
from service.errors import SlideChangedError, SlideError, StorageError, UsageError
from service.slides.reader import RegionReader
from service.testing.fake_store import HttpStore
from tests.service.slides.position_slides import draw_regions, make_request, write_position_slide

REPOSITORY = Path(__file__).resolve().parents[3]


def assert_shows_places(windows: Windows, size: tuple[int, int]) -> None:
    """Check that each pixel's colour encodes its position, and that pixels outside the slide are black."""
    side = max(size)
    for pixels, (left, top, wide, high) in zip(windows.pixels, windows.place, strict=True):
        index = np.arange(pixels.shape[0]) + 0.5
        x = ((left + index * wide + 1) * side / 2 - (side - size[0]) / 2) / size[0]
        y = ((top + index * high + 1) * side / 2 - (side - size[1]) / 2) / size[1]
        lit = pixels[..., 2] > 0
        step_x, step_y = wide * side / 2 / size[0], high * side / 2 / size[1]
        sure = ((y > step_y) & (y < 1 - step_y))[:, None] & ((x > step_x) & (x < 1 - step_x))[None]
        off = ((y < -step_y) | (y > 1 + step_y))[:, None] | ((x < -step_x) | (x > 1 + step_x))[None]
        assert not (lit & off).any()
        filled = lit[:, lit.any(axis=0)]
        assert filled[filled.any(axis=1)].all()  # a rectangle without holes
        wrong_x = np.abs(pixels[..., 0] - x[None] * 250)[sure & lit]
        wrong_y = np.abs(pixels[..., 1] - y[:, None] * 250)[sure & lit]
        assert max(wrong_x.max(initial=0), wrong_y.max(initial=0)) <= 1.0 + 250 * 0.02 * max(step_x, step_y)


@pytest.mark.parametrize(
    ("size", "steps", "tile"),
    [
        ((1000, 700), [1, 2, 4, 8], 64),
        ((701, 999), [1, 4, 16], 64),
        ((640, 640), [1], 64),
        ((640, 641), [1], 48),
        ((900, 613), [1, 3, 7], 80),
        ((30, 45), [1, 2], 64),
        ((1, 1), [1], 16),
        ((2000, 17), [1, 2], 64),
    ],
)
def test_windows_show_the_places_that_they_report(
    tmp_path: Path, size: tuple[int, int], steps: list[int], tile: int
) -> None:
    path = write_position_slide(tmp_path / "x.tif", size, steps, tile)
    with RegionReader(num_threads=2) as reader:
        batch = reader.batch([str(path)])
        windows = batch.fetch(make_request(draw_regions(40, seed=size[0])))
        assert batch.side_px.tolist() == [max(size)]
    assert_shows_places(windows, size)


def test_a_region_of_the_slide_holds_its_pixels(tmp_path: Path) -> None:
    path = write_position_slide(tmp_path / "x.tif", (640, 640), [1])
    level0 = tifffile.imread(path)
    with RegionReader() as reader:
        region = from_level0(np.array([[100.0, 200.0, 56.0], [-500.0, 0.0, 56.0]]), (640, 640))
        windows = reader.batch([str(path)]).fetch(make_request(region))
    x, y = np.rint((windows.place[0, :2] + 1) * 320).astype(int)
    assert abs(x - 97) <= 1
    assert abs(y - 197) <= 1
    np.testing.assert_array_equal(windows.pixels[0, :60, :60], level0[y : y + 60, x : x + 60])
    assert windows.level.tolist() == [1.0, 1.0]
    assert not windows.pixels[1].any()  # fully outside


def test_pixels_do_not_depend_on_batching_caching_or_threads(tmp_path: Path) -> None:
    paths = [str(write_position_slide(tmp_path / f"{n}.tif", (900 + n, 700), [1, 4])) for n in range(3)]
    regions, slides = draw_regions(30, seed=5), [n % 3 for n in range(30)]
    with RegionReader(num_threads=8) as reader:
        together = reader.batch(paths).fetch(make_request(regions, slide=slides))
        again = reader.batch(paths).fetch(make_request(regions, slide=slides))
    np.testing.assert_array_equal(together.pixels, again.pixels)
    with RegionReader(num_threads=1, tile_cache_bytes=0) as reader:
        for n in range(30):
            alone = reader.batch([paths[slides[n]]]).fetch(make_request(regions[n : n + 1]))
            np.testing.assert_array_equal(alone.pixels[0], together.pixels[n])
            np.testing.assert_array_equal(alone.place[0], together.place[n])


def test_many_threads_share_a_reader_and_each_tile_is_read_once(tmp_path: Path) -> None:
    path = str(write_position_slide(tmp_path / "x.tif", (1500, 1500), [1]))
    regions = draw_regions(20, seed=9)
    with RegionReader(num_threads=4) as reader:
        batches = [reader.batch([path]) for _ in range(6)]
        results: list[Windows | None] = [None] * 6

        def fetch(n: int) -> None:
            results[n] = batches[n].fetch(make_request(regions))

        threads = [threading.Thread(target=fetch, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first = results[0]
        assert first is not None
        for other in results[1:]:
            assert other is not None
            np.testing.assert_array_equal(other.pixels, first.pixels)
        decoded = sum(batch.counters[0].tiles for batch in batches)
        assert decoded <= (1500 // 64 + 1) ** 2


PAD = 300

SLIDES = {  # permitted mean difference to OpenSlide: 0 for lossless codecs
    "boxes-deflate.tiff": 0.0,
    "cmu-1-small-region-pyramid.svs": 0.5,
    "cmu-1-small-region.svs": 0.5,
    "he-two-pieces.tif": 0.5,
    "tcga-cr-7395-01a-01-ts1.svs": 0.5,
    "tiny-16px.svs": 0.5,
    "fluorescence-dapi.ndpi": 0.0,
    "lymph-node-jpeg.dcm": 0.0,
    "tiny-uncompressed.dcm": 0.0,
}


@pytest.mark.parametrize("name", SLIDES)
def test_every_level_agrees_with_openslide(test_data: Path, name: str) -> None:
    path = test_data / "slides" / name
    with RegionReader() as reader, openslide.OpenSlide(path) as reference:
        info = reader.info(str(path))
        assert info.size_px == reference.dimensions
        assert [level.size_px for level in info.levels] == list(reference.level_dimensions)
        assert [level.downsample for level in info.levels] == pytest.approx(reference.level_downsamples, rel=1e-3)
        batch = reader.batch([str(path)])
        for level, (wide, high) in enumerate(reference.level_dimensions):
            rgba = np.asarray(reference.read_region((0, 0), level, (wide, high)))
            theirs = np.pad(rgba[..., :3] + (255 - rgba[..., 3:]), ((PAD, PAD), (PAD, PAD), (0, 0)))  # black outside
            step = max(info.size_px[0] / wide, info.size_px[1] / high)
            side = 200 * step * 1.001
            corner = np.random.default_rng(level).uniform(0, info.size_px, (8, 2)) - side / 2
            region = from_level0(np.concatenate([corner, np.full((8, 1), side)], axis=1), info.size_px)
            windows = batch.fetch(make_request(region, out_px=200, margin_px=5))
            assert windows.level == pytest.approx(info.levels[level].downsample, rel=1e-6)
            for pixels, (left, top, px_w, px_h) in zip(windows.pixels, windows.place, strict=True):
                x = round((left + info.size_px[0] / batch.side_px[0]) / px_w) + PAD
                y = round((top + info.size_px[1] / batch.side_px[0]) / px_h) + PAD
                difference = np.abs(pixels[:200, :200] - theirs[y : y + 200, x : x + 200].astype(int))
                assert difference.shape == (200, 200, 3)
                assert difference.mean() <= SLIDES[name], f"level {level}"


@pytest.mark.parametrize("name", [name for name in SLIDES if not name.startswith(("tcga", "fluor"))])  # those are slow
def test_thumbnails_agree_with_means_of_openslides_level_0(test_data: Path, name: str) -> None:
    path = test_data / "slides" / name
    with RegionReader() as reader, openslide.OpenSlide(path) as reference:
        ours = reader.thumbnail(str(path), 40)
        longest = max(reference.dimensions)
        theirs = np.asarray(reference.read_region((0, 0), 0, reference.dimensions))
    level0 = theirs[..., :3] + (255 - theirs[..., 3:])
    assert max(ours.shape[:2]) == min(40, longest)
    assert ours.reshape(-1, 3).mean(axis=0) == pytest.approx(level0.reshape(-1, 3).mean(axis=0), abs=2.5)


BAD = {
    "empty.svs": "0 bytes is not a slide",
    "random-bytes.svs": "is not a TIFF",
    "header-only.svs": "file ends at 1024; it is truncated",
    "truncated-half.svs": "file ends at 969477; it is truncated",
    "truncated.ndpi": "file ends at 262144; it is truncated",
    "truncated-half.dcm": "level 0, tile .*end of filehandle",
    "tile-not-decodable.svs": r"level 0, tile \(column 0, row 0\): the tile's bytes cannot be decoded",
    "unknown-compression.tiff": "compression 52479",
    "mirax-no-data.mrxs": "Index.dat doesn't have expected version",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_a_clear_error_and_affect_no_other_slide(test_data: Path, name: str) -> None:
    good = str(test_data / "slides" / "he-two-pieces.tif")
    with RegionReader() as reader:
        for _ in range(2):  # the second error must be as clear as the first
            with pytest.raises(SlideError, match=BAD[name]) as caught:
                reader.batch([good, str(test_data / "bad" / name)]).fetch(
                    make_request(np.array([[1.0, 0, 0]]), slide=[1])
                )
            assert caught.value.uri is not None
            assert caught.value.uri.endswith(name)
        assert reader.batch([good]).fetch(make_request(np.array([[1.0, 0, 0]]))).pixels.any()


READ_OFTEN = """
import sys
import numpy as np
from magnet.windows import WindowRequest
from service.errors import SlideError
from service.slides.reader import RegionReader
request = WindowRequest(0, np.zeros(1, np.int64), np.array([[1.0, 0, 0]]), 600, 0)
for _ in range(150):
    with RegionReader(num_threads=6) as reader:
        try:
            reader.batch([sys.argv[1]]).fetch(request)
        except SlideError:
            print("refused")
"""


@pytest.mark.slow
def test_a_damaged_dicom_file_read_by_threads_does_not_crash_the_process(test_data: Path) -> None:
    command = [sys.executable, "-c", READ_OFTEN, str(test_data / "bad" / "truncated-half.dcm")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert (result.returncode, result.stdout.count("refused")) == (0, 150)


def test_labels_and_macros_are_never_read(test_data: Path, store: HttpStore) -> None:
    name = "cmu-1-small-region-pyramid.svs"
    shutil.copy(test_data / "slides" / name, store.folder / name)
    with tifffile.TiffFile(store.folder / name) as file:
        private = [page for page in file.pages if not page.is_tiled]
        places = [(o, o + n) for page in private for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    with RegionReader(num_threads=2) as reader:
        reader.thumbnail(f"s3://bucket/{name}", 2000)
        reader.batch([f"s3://bucket/{name}"]).fetch(make_request(draw_regions(30, 1)))
    data_reads = [r for r in store.gets() if r.start is not None and (r.start % 32768 or (r.stop or 0) % 32768)]
    assert data_reads
    for request in data_reads:  # a page of the header may overlap with the bytes after it
        assert request.start is not None
        assert request.stop is not None
        assert not any(start <= request.start and request.stop <= stop for start, stop in places)


def test_missing_tiles_are_white(tmp_path: Path) -> None:
    tiles = [np.full((64, 64, 3), 90, np.uint8), None, None, np.full((64, 64, 3), 90, np.uint8)]
    tifffile.imwrite(
        tmp_path / "x.tif", iter(tiles), shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64), photometric="rgb"
    )
    with RegionReader() as reader:
        thumbnail = reader.thumbnail(str(tmp_path / "x.tif"), 128)
    assert (thumbnail[:64, :64] == 90).all()
    assert (thumbnail[:64, 64:] == 255).all()
    assert (thumbnail[64:, :64] == 255).all()


def test_a_vendor_slide_replaced_while_open_is_detected(test_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    shutil.copy(test_data / "slides" / "lymph-node-jpeg.dcm", path)
    with RegionReader() as reader:
        batch = reader.batch([str(path)])
        os.utime(path, ns=(1, 1))
        with pytest.raises(SlideChangedError, match="open it again"):
            batch.fetch(make_request(np.array([[0.1, 0.0, 0.0]])))


@pytest.mark.parametrize("place", ["file", "s3", "http"])
def test_a_slide_replaced_while_open_is_detected_and_can_be_opened_again(store: HttpStore, place: str) -> None:
    path = write_position_slide(store.folder / "x.tif", (500, 400), [1])
    uri = {"file": str(path), "s3": "s3://bucket/x.tif", "http": store.url("x.tif")}[place]
    with RegionReader() as reader:
        batch = reader.batch([uri])
        batch.fetch(make_request(np.array([[0.1, -0.5, -0.5]])))
        write_position_slide(store.folder / "new.tif", (600, 300), [1])
        os.replace(store.folder / "new.tif", path)
        with pytest.raises(SlideChangedError, match="open it again"):
            batch.fetch(make_request(np.array([[0.1, 0.5, 0.5]])))
        reopened = reader.batch([uri])
        assert reopened.info[0].size_px == (600, 300)
        assert_shows_places(reopened.fetch(make_request(draw_regions(5, 3))), (600, 300))


@pytest.mark.slow
def test_all_stores_deliver_the_same_pixels_in_spite_of_faults(store: HttpStore) -> None:
    path = write_position_slide(store.folder / "x y.tif", (900, 700), [1, 2, 4])
    regions = draw_regions(12, seed=2)
    with RegionReader(num_threads=4, deadline_s=20) as reader:
        local = reader.batch([str(path)]).fetch(make_request(regions))
        for uri in (f"file://{path}", "s3://bucket/x y.tif", store.url("x%20y.tif")):
            store.faults.extend(["503", "reset", "short", "500"])
            remote = reader.batch([uri]).fetch(make_request(regions))
            np.testing.assert_array_equal(remote.pixels, local.pixels)


def test_a_store_that_fails_names_slide_level_and_tile(store: HttpStore) -> None:
    write_position_slide(store.folder / "x.tif", (500, 400), [1])
    with RegionReader(deadline_s=0.3) as reader:
        batch = reader.batch(["s3://bucket/x.tif"])
        batch.fetch(make_request(np.array([[0.05, 0.5, 0.5]])))
        store.faults.extend(["503"] * 500)
        with pytest.raises(
            StorageError, match=r"s3://bucket/x.tif, level 0, tile \(column \d+, row \d+\): .*503.*gave up"
        ):
            batch.fetch(make_request(np.array([[0.1, -0.5, -0.5]])))
        store.faults.clear()
        assert batch.fetch(make_request(np.array([[0.1, -0.5, -0.5]]))).pixels.any()


def test_opening_a_remote_slide_takes_one_request_and_looking_it_up_another(store: HttpStore) -> None:
    write_position_slide(store.folder / "x.tif", (130, 130), [1, 2])
    region = from_level0(np.array([[70.0, 70.0, 50.0]]), (130, 130))
    with RegionReader() as reader:
        batch = reader.batch(["s3://bucket/x.tif"])
        assert [(r.method, r.start) for r in store.log] == [("GET", 0)]
        batch.fetch(make_request(region, out_px=50, margin_px=0))
        assert len(store.log) == 2  # the header request also returned the tile positions
        reader.batch(["s3://bucket/x.tif"])
        assert [r.method for r in store.log] == ["GET", "GET", "HEAD"]


def test_an_empty_object_is_refused(store: HttpStore) -> None:
    (store.folder / "x.tif").write_bytes(b"")
    for uri in ("s3://bucket/x.tif", store.url("x.tif")):
        with RegionReader() as reader, pytest.raises(SlideError, match="0 bytes is not a slide"):
            reader.info(uri)


def test_counters_agree_with_the_requests_at_the_store(store: HttpStore) -> None:
    write_position_slide(store.folder / "x.tif", (640, 640), [1])
    with RegionReader() as reader:
        batch = reader.batch(["s3://bucket/x.tif"])
        region = from_level0(np.array([[70.0, 70.0, 50.0]]), (640, 640))
        batch.fetch(make_request(region, out_px=50, margin_px=0))
        counters = batch.counters[0]
        assert (counters.tiles, counters.cache_hits, counters.windows) == (1, 0, 1)
        assert counters.requests == len(store.log)
        assert counters.bytes == sum((r.stop or 0) - (r.start or 0) for r in store.gets())
        batch.fetch(make_request(region, out_px=50, margin_px=0))
        assert (counters.tiles, counters.cache_hits, counters.windows) == (1, 1, 2)


@pytest.mark.parametrize("region", [[np.nan, 0, 0], [0.0, 0, 0], [-1.0, 0, 0], [1.0, 1e30, 0], [1.0, np.inf, 0]])
def test_invalid_regions_are_refused(tmp_path: Path, region: list[float]) -> None:
    path = write_position_slide(tmp_path / "x.tif", (64, 64), [1])
    with RegionReader() as reader, pytest.raises(UsageError, match="region"):
        reader.batch([str(path)]).fetch(make_request(np.array([region])))
