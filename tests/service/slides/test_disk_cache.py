"""Cache of whole slides for OpenSlide: limited, resumable, shared, with companion files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from magnet.windows import WindowRequest
from service.errors import StorageError, UnsupportedSlideError, UsageError
from service.slides.disk_cache import DiskCache, find_companions
from service.slides.reader import RegionReader
from service.storage.counters import ReadCounters
from service.storage.ranges import OpenFiles, RangeSource, open_source
from service.testing.fake_store import HttpStore


def store_file(store: HttpStore, name: str, size: int = 1000) -> RangeSource:
    (store.folder / name).write_bytes(os.urandom(size))
    return open_source(f"s3://bucket/{name}", OpenFiles())


@pytest.mark.parametrize("name", ["fluorescence-dapi.ndpi", "tiny-uncompressed.dcm"])
def test_vendor_slides_from_a_store_equal_local_ones(store: HttpStore, test_data: Path, name: str) -> None:
    shutil.copy(test_data / "slides" / name, store.folder / name)
    request = WindowRequest(0, np.zeros(1, np.int64), np.array([[0.2, 0.1, -0.1]]), 56, 2)
    with RegionReader(num_threads=2) as reader:
        local = reader.batch([str(test_data / "slides" / name)]).fetch(request)
        remote = reader.batch([f"s3://bucket/{name}"])
        np.testing.assert_array_equal(remote.fetch(request).pixels, local.pixels)
        assert remote.counters[0].bytes >= (store.folder / name).stat().st_size
    with RegionReader(num_threads=2) as reader:  # as another process of the node would
        again = reader.batch([f"s3://bucket/{name}"])
        np.testing.assert_array_equal(again.fetch(request).pixels, local.pixels)
        assert again.counters[0].bytes < 1 << 18


def test_the_least_recently_used_copy_is_evicted(store: HttpStore, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", max_bytes=2500)
    sources = [store_file(store, f"{n}.ndpi") for n in range(3)]
    counters = ReadCounters()
    paths = []
    for source in sources[:2]:
        paths.append(Path(cache.fetch(source, counters).path))
    for lock, age in zip([path.parent.with_suffix(".lock") for path in paths], (5, 9), strict=True):
        os.utime(lock, (age, age))
    cache.fetch(sources[0], counters)  # the older one becomes the most recently used
    cache.fetch(sources[2], counters)
    assert [path.exists() for path in paths] == [True, False]
    assert counters.bytes == 3 * (1000 + 1000)  # files as small as these are read completely before they are copied


def test_an_open_copy_is_never_evicted(store: HttpStore, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", max_bytes=1500)
    held = cache.fetch(store_file(store, "a.ndpi"), ReadCounters())
    other = store_file(store, "b.ndpi")
    with pytest.raises(StorageError, match="full of open slides; set MAGNET_CACHE_GB"):
        cache.fetch(other, ReadCounters())
    path = held.path
    assert Path(path).exists()
    del held
    cache.fetch(other, ReadCounters())
    assert not Path(path).exists()


def test_a_slide_larger_than_the_cache_is_refused(store: HttpStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="set MAGNET_CACHE_GB"):
        DiskCache(tmp_path, max_bytes=999).fetch(store_file(store, "a.ndpi"), ReadCounters())


def test_a_download_continues_where_it_stopped(
    store: HttpStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.slides.disk_cache.PART_BYTES", 400)
    (store.folder / "a.ndpi").write_bytes(os.urandom(1000))
    source = open_source("s3://bucket/a.ndpi", OpenFiles(), deadline_s=0.2)
    cache = DiskCache(tmp_path / "cache", max_bytes=10_000)
    store.faults.extend(["", "", "503", "503", "503", "503", "503", "503", "503", "503"] * 5)
    with pytest.raises(StorageError, match="gave up"):
        cache.fetch(source, ReadCounters())
    store.faults.clear()
    counters = ReadCounters()
    copy = cache.fetch(source, counters)
    assert Path(copy.path).read_bytes() == (store.folder / "a.ndpi").read_bytes()
    assert counters.bytes == 1000 + 600  # a file as small as this is read completely before it is copied


def test_another_version_is_another_entry(store: HttpStore, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", max_bytes=10_000)
    first = cache.fetch(store_file(store, "a.ndpi"), ReadCounters())
    second = cache.fetch(store_file(store, "a.ndpi"), ReadCounters())
    assert first.path != second.path
    assert Path(second.path).read_bytes() == (store.folder / "a.ndpi").read_bytes()


def test_companions_are_found_by_the_rules_of_their_formats(store: HttpStore) -> None:
    for name in ("x.mrxs", "x/Slidedat.ini", "x/Data0000.dat", "xy/other.dat"):
        (store.folder / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (store.folder / "m" / name).write_bytes(b"1")
    assert sorted(find_companions(open_source("s3://bucket/m/x.mrxs", OpenFiles()), ReadCounters())) == [
        "x/Data0000.dat",
        "x/Slidedat.ini",
    ]
    for name in ("d/a.dcm", "d/b.dcm", "d/notes.txt", "d/deep/c.dcm"):
        (store.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (store.folder / name).write_bytes(b"1")
    assert find_companions(open_source("s3://bucket/d/a.dcm", OpenFiles()), ReadCounters()) == {
        "b.dcm": "s3://bucket/d/b.dcm"
    }
    (store.folder / "x.vms").write_text(
        "[Virtual Microscope Specimen]\nImageFile=x.jpg\nMapFile=x_map.jpg\nNo=../y.jpg\n"
    )
    (store.folder / "x.jpg").write_bytes(b"1")
    assert find_companions(open_source("s3://bucket/x.vms", OpenFiles()), ReadCounters()) == {
        "x.jpg": "s3://bucket/x.jpg"
    }
    (store.folder / "x.ndpi").write_bytes(bytes(1000))
    assert find_companions(open_source("s3://bucket/x.ndpi", OpenFiles()), ReadCounters()) == {}


def test_a_mirax_slide_is_copied_with_its_folder(store: HttpStore, test_data: Path) -> None:
    shutil.copy(test_data / "bad" / "mirax-no-data.mrxs", store.folder)
    shutil.copytree(test_data / "bad" / "mirax-no-data", store.folder / "mirax-no-data")
    folder_is_read = "Index.dat doesn't have expected version"
    with RegionReader() as reader, pytest.raises(UnsupportedSlideError, match=folder_is_read):
        reader.info("s3://bucket/mirax-no-data.mrxs")
