"""Root views read ahead: which come, which are told to be lost, and how long an absent store is waited for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from magnet.config import ZoomConfig
from magnet.windows import Windows
from ray_jobs.training.stream import STORE_PATIENCE_S, MicroBatch, read_roots, store_patience_s
from service.errors import StorageError
from service.slides.reader import RegionReader
from service.testing.fake_store import HttpStore

ZOOM = ZoomConfig(schedule=(2, 2), map_px=8, view_px=16, patch_px=32)


def write_slide(path: Path, seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(32, 32), photometric="rgb")
    return str(path)


def test_a_slide_that_cannot_be_read_is_told_and_the_others_come(tmp_path: Path) -> None:
    good = [write_slide(tmp_path / f"{n}.tif", n) for n in range(2)]
    torn = write_slide(tmp_path / "torn.tif", 2)
    Path(torn).write_bytes(Path(torn).read_bytes()[:-9000])
    missing = str(tmp_path / "missing.tif")
    with RegionReader(num_threads=2) as reader:
        alone, none = read_roots(reader, good, ZOOM)
        windows, reasons = read_roots(reader, [missing, good[0], torn, good[1]], ZOOM)
        nothing, all_lost = read_roots(reader, [missing], ZOOM)
    assert none == ["", ""]
    assert "no such file" in reasons[0]
    assert reasons[2]
    assert [reasons[1], reasons[3]] == ["", ""]
    np.testing.assert_array_equal(windows.pixels[[1, 3]], alone.pixels)
    np.testing.assert_array_equal(windows.place[[1, 3]], alone.place)
    assert not windows.pixels[[0, 2]].any()
    assert nothing.pixels.shape == (1, *alone.pixels.shape[1:])
    assert "no such file" in all_lost[0]


@pytest.mark.slow
@pytest.mark.parametrize("faults", [["503"] * 8, ["stall", "503", "stall", "reset"]])
def test_a_store_that_is_away_for_longer_than_one_read_may_fail_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: list[str]
) -> None:
    write_slide(tmp_path / "a.tif", 0)
    with HttpStore(tmp_path) as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MAGNET_STORAGE_DEADLINE_S", "0.05")
        uri = "s3://bucket/a.tif"
        store.faults.extend(["503"] * 8)  # more than are tried within the deadline
        with RegionReader(num_threads=2, deadline_s=0.05) as hasty, pytest.raises(StorageError):
            read_roots(hasty, [uri], ZOOM)
        store.faults.clear()
        store.faults.extend(faults)
        with RegionReader(num_threads=2, deadline_s=store_patience_s()) as patient:
            _, reasons = read_roots(patient, [uri], ZOOM)
        assert reasons == [""]


def test_a_minute_is_within_the_patience_and_the_patience_within_a_collective_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MAGNET_STORAGE_DEADLINE_S", raising=False)
    assert 2 * 60 < store_patience_s() == STORE_PATIENCE_S < 1800 / 2
    monkeypatch.setenv("MAGNET_STORAGE_DEADLINE_S", "900")
    assert store_patience_s() == 900


def test_a_micro_batch_without_some_of_its_slides() -> None:
    roots = Windows(
        pixels=np.arange(3 * 12, dtype=np.uint8).reshape(3, 2, 2, 3),
        place=np.arange(12.0).reshape(3, 4),
        level=np.ones(3),
    )
    whole = MicroBatch(4, 1, np.array([7, 9, 8]), np.array([0, 3, 5]), roots, {9: "torn"})
    rest = whole.without({9, 2})
    assert rest.slides.tolist() == [7, 8]
    assert rest.frames.tolist() == [0, 5]
    np.testing.assert_array_equal(rest.roots.pixels, roots.pixels[[0, 2]])
    np.testing.assert_array_equal(rest.roots.place, roots.place[[0, 2]])
    assert (rest.step, rest.index, dict(rest.lost)) == (4, 1, {})
    assert whole.without({1}) is whole
