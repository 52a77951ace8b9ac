"""Root views read in advance: which are delivered, which are lost, and whether a failing store is retried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from magnet.config import ZoomConfig
from ray_jobs.training.input.deadline import get_store_deadline_s
from ray_jobs.training.input.roots import read_roots
from service.errors import StorageError
from service.slides.reader import RegionReader
from service.testing.fake_store import HttpStore

ZOOM = ZoomConfig(schedule=(2, 2), map_px=8, view_px=16, patch_px=32)


def write_slide(path: Path, seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(32, 32), photometric="rgb")
    return str(path)


def test_an_unreadable_slide_has_a_reason_and_the_others_are_delivered(tmp_path: Path) -> None:
    readable = [write_slide(tmp_path / f"{n}.tif", n) for n in range(2)]
    torn = write_slide(tmp_path / "torn.tif", 2)
    Path(torn).write_bytes(Path(torn).read_bytes()[:-9000])
    missing = str(tmp_path / "missing.tif")
    with RegionReader(num_threads=2) as reader:
        alone, no_reasons = read_roots(reader, readable, ZOOM)
        windows, reasons = read_roots(reader, [missing, readable[0], torn, readable[1]], ZOOM)
        black, lost_reasons = read_roots(reader, [missing], ZOOM)
    assert no_reasons == ["", ""]
    assert "no such file" in reasons[0]
    assert reasons[2]
    assert [reasons[1], reasons[3]] == ["", ""]
    np.testing.assert_array_equal(windows.pixels[[1, 3]], alone.pixels)
    np.testing.assert_array_equal(windows.place[[1, 3]], alone.place)
    assert not windows.pixels[[0, 2]].any()
    assert black.pixels.shape == (1, *alone.pixels.shape[1:])
    assert "no such file" in lost_reasons[0]


@pytest.mark.slow
@pytest.mark.parametrize("faults", [["503"] * 8, ["stall", "503", "stall", "reset"]])
def test_a_training_retries_longer_than_a_single_read_while_the_store_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: list[str]
) -> None:
    write_slide(tmp_path / "a.tif", 0)
    with HttpStore(tmp_path) as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MAGNET_STORAGE_DEADLINE_S", "0.05")
        uri = "s3://bucket/a.tif"
        store.faults.extend(["503"] * 8)  # more than are tried within the deadline
        with RegionReader(num_threads=2, deadline_s=0.05) as default_reader, pytest.raises(StorageError):
            read_roots(default_reader, [uri], ZOOM)
        store.faults.clear()
        store.faults.extend(faults)
        with RegionReader(num_threads=2, deadline_s=get_store_deadline_s()) as training_reader:
            _, reasons = read_roots(training_reader, [uri], ZOOM)
        assert reasons == [""]
