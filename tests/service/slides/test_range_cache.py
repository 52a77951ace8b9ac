"""Cache of compressed tiles and headers: no repeated requests, limited, shared, and never wrong bytes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from magnet.windows import WindowRequest, Windows
from service.errors import UsageError
from service.slides import range_cache
from service.slides.range_cache import RangeCache
from service.slides.reader import RegionReader
from service.storage.counters import ReadCounters
from service.testing.fake_store import HttpStore

REPOSITORY = Path(__file__).resolve().parents[3]
MB = 1 << 20
VERSION = b"a version of a slide"

READ = """
import sys, zlib
import numpy as np
from magnet.windows import WindowRequest
from service.slides.reader import RegionReader
regions = np.random.default_rng(int(sys.argv[2])).uniform(-0.5, 0.5, (20, 3))
regions[:, 0] = 0.1
with RegionReader(num_threads=4, disk_cache_bytes=1 << 26) as reader:
    for n in range(20):
        windows = reader.batch([sys.argv[1]]).fetch(WindowRequest(0, np.zeros(1, np.int64), regions[n : n + 1], 56, 2))
        print(zlib.crc32(windows.pixels))
"""
WRITE = """
import sys
from pathlib import Path
from service.slides.range_cache import RangeCache
cache = RangeCache(Path(sys.argv[1]), 1 << 26)
print("ready", flush=True)
for n in range(1 << 30):
    cache.put(b"killed", [(10 * n + k, n.to_bytes(8) * 4000) for k in range(4)])
"""


def write_noisy_slide(path: Path, seed: int = 0) -> str:
    """Write a slide whose tiles all differ into a store, and return its URI."""
    pixels = np.random.default_rng(seed).integers(0, 256, (1000, 800, 3), dtype=np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(128, 128), compression="zlib", metadata=None)
        file.write(pixels[::2, ::2], tile=(128, 128), compression="zlib", subfiletype=1, metadata=None)
    return f"s3://bucket/{path.name}"


def read_windows(uri: str, disk_cache_bytes: int | None = 64 * MB) -> tuple[Windows, ReadCounters]:
    """Read ten windows as a new process would."""
    rng = np.random.default_rng(1)
    region = np.stack([rng.uniform(0.05, 0.4, 10), *rng.uniform(-0.9, 0.9, (2, 10))], axis=1)
    with RegionReader(num_threads=4, disk_cache_bytes=disk_cache_bytes) as reader:
        batch = reader.batch([uri])
        return batch.fetch(WindowRequest(0, np.zeros(10, np.int64), region, 56, 2)), batch.counters[0]


def test_the_second_reader_of_a_node_requests_only_the_version(store: HttpStore) -> None:
    uri = write_noisy_slide(store.folder / "x.tif")
    plain, _ = read_windows(uri, disk_cache_bytes=0)
    first, _ = read_windows(uri)
    store.log.clear()
    second, counters = read_windows(uri)
    assert [request.method for request in store.log] == ["HEAD"]
    assert (counters.requests, counters.bytes) == (1, 0)
    assert counters.disk_hits > counters.tiles > 0
    np.testing.assert_array_equal(first.pixels, plain.pixels)
    np.testing.assert_array_equal(second.pixels, plain.pixels)


def test_a_replaced_slide_is_read_again(store: HttpStore) -> None:
    uri = write_noisy_slide(store.folder / "x.tif")
    old, _ = read_windows(uri)
    write_noisy_slide(store.folder / "x.tif", seed=1)
    new, _ = read_windows(uri)
    fresh, _ = read_windows(uri, disk_cache_bytes=0)
    np.testing.assert_array_equal(new.pixels, fresh.pixels)
    assert (new.pixels != old.pixels).any()


def test_the_cache_is_off_unless_the_environment_or_the_caller_says_otherwise(
    store: HttpStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write_noisy_slide(store.folder / "x.tif")
    read_windows(uri, None)
    assert not (tmp_path / "cache" / "ranges").exists()
    monkeypatch.setenv("MAGNET_TILE_CACHE_GB", "0.1")
    read_windows(uri, None)
    assert read_windows(uri, None)[1].bytes == 0
    monkeypatch.setenv("MAGNET_TILE_CACHE_GB", "-1")
    with pytest.raises(UsageError, match="MAGNET_TILE_CACHE_GB is '-1': must be a number above 0, or 0"):
        RegionReader()


def test_local_files_are_not_copied(store: HttpStore) -> None:
    write_noisy_slide(store.folder / "x.tif")
    assert read_windows(str(store.folder / "x.tif"))[1].disk_hits == 0
    assert read_windows(str(store.folder / "x.tif"))[1].disk_hits == 0


@pytest.mark.slow
def test_processes_share_a_folder(store: HttpStore) -> None:
    uri = write_noisy_slide(store.folder / "x.tif")

    def start(seed: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", READ, uri, str(seed)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=dict(os.environ))

    together = [start(seed) for seed in (5, 6)]
    outputs = [process.communicate(timeout=60)[0] for process in together]
    assert [output.count("\n") for output in outputs] == [20, 20]
    assert outputs[0] != outputs[1]
    store.log.clear()
    assert start(6).communicate(timeout=60)[0] == outputs[1]
    assert not store.gets()


def test_the_least_recently_used_ranges_are_evicted(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 2 * MB)
    data = os.urandom(30_000)
    for n in range(300):
        cache.put(VERSION, [(n, data)])
        assert cache.get(VERSION, 0, 30_000) == data  # used after every write
    contained = cache.contains(VERSION, np.arange(300), np.full(300, 30_000))
    assert contained[0]
    assert not contained[1:200].any()
    assert contained[-20:].all()
    cache.put(VERSION, [(1, bytes(3 * MB))])  # larger than the cache: not stored, nothing evicted
    assert cache.get(VERSION, 1, 3 * MB) is None
    cache.close()
    assert (tmp_path / "ranges.sqlite").stat().st_size <= 2 * MB


def test_damaged_bytes_are_a_miss_and_removed(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 8 * MB)
    cache.put(VERSION, [(0, b"right"), (10, b"other")])
    with sqlite3.connect(tmp_path / "ranges.sqlite") as database:
        database.execute("UPDATE ranges SET data = ? WHERE start = 0", (b"wrong",))
    database.close()
    assert cache.get(VERSION, 0, 5) is None
    assert cache.get(VERSION, 10, 5) == b"other"
    assert cache.contains(VERSION, np.array([0, 10]), np.array([5, 5])).tolist() == [False, True]
    cache.close()


def write_other_database(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE ranges (something TEXT)")
    database.close()


@pytest.mark.parametrize("kind", ["garbage", "foreign"])
def test_a_file_that_is_not_a_cache_is_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ranges.sqlite"
    path.write_bytes(os.urandom(100_000)) if kind == "garbage" else write_other_database(path)
    cache = RangeCache(tmp_path, 8 * MB)
    assert cache.get(VERSION, 0, 5) is None
    cache.put(VERSION, [(0, b"right")])
    assert cache.get(VERSION, 0, 5) == b"right"
    cache.close()


def test_a_cache_damaged_while_open_is_closed_by_all_and_then_recreated(tmp_path: Path) -> None:
    writer, second = RangeCache(tmp_path, 64 * MB), RangeCache(tmp_path, 64 * MB)
    for n in range(200):
        writer.put(VERSION, [(n, os.urandom(20_000))])
    writer.close()
    third = RangeCache(tmp_path, 64 * MB)
    path = tmp_path / "ranges.sqlite"
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))
    for cache in (third, second, third):
        assert [cache.get(VERSION, n, 20_000) for n in range(200)] == [None] * 200
    for cache in (third, second):
        cache.put(VERSION, [(0, b"not kept, or kept whole")])
        cache.close()
    recreated = RangeCache(tmp_path, 64 * MB)
    recreated.put(VERSION, [(7, b"right")])
    assert recreated.get(VERSION, 7, 5) == b"right"
    recreated.close()


def test_a_process_killed_while_it_writes_leaves_whole_ranges(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    process.stdout.readline()
    cache = RangeCache(tmp_path, 64 * MB)
    while cache.get(b"killed", 10 * 50, 32_000) is None:  # this process reads while the other one writes
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for n in range(50):
        assert {cache.get(b"killed", 10 * n + k, 32_000) for k in range(4)} == {n.to_bytes(8) * 4000}
    cache.put(VERSION, [(0, b"right")])
    assert cache.get(VERSION, 0, 5) == b"right"
    cache.close()


def test_a_busy_or_missing_disk_costs_requests_but_fails_no_read(
    store: HttpStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_cache, "BUSY_S", 0.01)
    uri = write_noisy_slide(store.folder / "x.tif")
    plain, _ = read_windows(uri)
    folder = tmp_path / "cache" / "ranges"
    writer = sqlite3.connect(folder / "ranges.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    write_noisy_slide(store.folder / "y.tif")
    busy, _ = read_windows("s3://bucket/y.tif")
    np.testing.assert_array_equal(busy.pixels, plain.pixels)
    writer.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="check the path"):
        RangeCache(tmp_path / "file" / "x", MB)
