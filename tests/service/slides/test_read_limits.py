"""The cost of a zoom on slides of 100,000 pixels, and the benchmark of reading."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from magnet.regions import from_level0
from magnet.windows import WindowRequest
from service.slides.reader import RegionReader
from service.synthetic.__main__ import main as make_slides
from service.testing.fake_store import HttpStore

REPOSITORY = Path(__file__).resolve().parents[3]
MEASURE = """
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_read_limits import run_random_zoom
from service.slides.reader import RegionReader
with RegionReader() as reader:
    run_random_zoom(reader, sys.argv[1])
print(re.search("VmHWM:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1])
"""


def run_random_zoom(reader: RegionReader, uri: str) -> tuple[int, int]:
    """Read the windows of a zoom with schedule (3, 2, 3, 2) at random places; return the requests and bytes."""
    batch = reader.batch([uri])
    size = batch.info[0].size_px
    rng = np.random.default_rng(0)
    sides = np.geomspace(max(size), 224, 5)
    for layer, num in enumerate((1, 3, 6, 18, 36)):
        corner = rng.uniform(0, 1, (num, 2)) * (np.array(size) - sides[layer])
        box = np.concatenate([corner, np.full((num, 1), sides[layer])], axis=1)
        out_px = 224 if layer == 4 else 112
        batch.fetch(WindowRequest(layer, np.zeros(num, np.int64), from_level0(box, size), out_px, 8))
    return batch.counters[0].requests, batch.counters[0].bytes


@pytest.mark.slow
def test_a_zoom_costs_little_and_memory_does_not_grow_with_the_slide(tmp_path: Path, store: HttpStore) -> None:
    peaks = []
    for side_px in (10_000, 100_000):
        folder = store.folder / str(side_px)
        make_slides([str(folder), "--num-slides", "1", "--side-px", str(side_px), "--seed", "1"])
        (slide,) = (folder / "slides").iterdir()
        command = [sys.executable, "-c", MEASURE, str(slide), str(Path(__file__).parent)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY).stdout))
    assert peaks[1] <= 1.1 * peaks[0]
    with RegionReader() as reader:
        requests, num_bytes = run_random_zoom(reader, f"s3://bucket/100000/slides/{slide.name}")
    assert requests <= 200
    assert num_bytes <= 10e6


@pytest.mark.slow
def test_the_benchmark_compares_both_readers(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8).repeat(128, 0).repeat(128, 1)
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for step in (1, 2, 4):
            level = pixels[::step, ::step]
            file.write(level, tile=(256, 256), compression="jpeg", subfiletype=int(step > 1), metadata=None)
    command = [sys.executable, "benchmarks/read_regions.py", str(tmp_path / "x.tif"), "--num-regions", "4", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY, env=environment)
    figures = json.loads(result.stdout)
    assert figures["regions"] == 4
    assert figures["max_abs_difference_mean"] < 1
    assert figures["ratio"] == pytest.approx(figures["ours_regions_per_s"] / figures["other_regions_per_s"], rel=0.1)
    assert min(figures["cpu_over_decode"], figures["bytes"], figures["requests"]) > 0
