"""A reader with mutated files, and a reader that runs for a long time: no crash, no hang, no growth."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from service.errors import MagnetError
from service.slides.reader import RegionReader, SlideBatch
from tests.service.slides.position_slides import draw_regions, make_request, write_position_slide


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Change some bytes at random, set some to the maximum, or truncate the file."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(0, len(changed) - 8))
        kind = rng.integers(3)
        if kind == 0:
            changed[place] = rng.integers(256)
        elif kind == 1:
            changed[place : place + 4] = b"\xff\xff\xff\xff"
        else:
            changed[place : place + 2] = bytes(rng.integers(0, 256, 2, dtype=np.uint8))
    return bytes(changed[: rng.integers(8, len(changed))] if rng.random() < 0.2 else changed)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_headers_never_crash_hang_or_fill_the_memory(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = write_position_slide(tmp_path / "x.tif", (100, 80), [1, 2], tile=32)
    data = path.read_bytes()
    refused: list[str] = []
    with RegionReader(num_threads=1, tile_cache_bytes=0) as reader:
        for n in range(60):
            mutant = tmp_path / f"{n}.tif"
            mutant.write_bytes(mutate(data, rng))
            try:
                batch: SlideBatch = reader.batch([str(mutant)])
                batch.fetch(make_request(np.array([[0.5, 0.0, 0.0]])))
            except MagnetError as error:
                refused.append(str(error))
            mutant.unlink()
    assert len(refused) > 5
    assert all(str(tmp_path) in message for message in refused)


@pytest.mark.slow
def test_memory_and_open_files_stay_constant_in_a_long_run(tmp_path: Path) -> None:
    """`benchmarks/soak_reader.py` does the same with 200,000 regions."""
    num_slides, num_regions = 200, 20_000
    paths = [str(write_position_slide(tmp_path / f"{n}.tif", (400, 300), [1, 2])) for n in range(num_slides)]
    rng, batch_size, per_batch = np.random.default_rng(0), 20, 40
    used = []
    with RegionReader(tile_cache_bytes=4 << 20, num_threads=2, header_cache_bytes=1 << 20) as reader:
        for n in range(num_regions // per_batch):
            first = n * batch_size % num_slides
            slides = rng.integers(0, batch_size, per_batch).tolist()
            reader.batch(paths[first : first + batch_size]).fetch(
                make_request(draw_regions(per_batch, n), slide=slides)
            )
            used.append((read_resident_bytes(), len(os.listdir("/proc/self/fd"))))
    warm = used[len(used) // 3]
    assert used[-1][0] < warm[0] * 1.1
    assert used[-1][1] <= warm[1] + 2


def read_resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
