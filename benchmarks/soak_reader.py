"""Long run of one reader over many slides: its memory and number of open files must stay constant.

    python benchmarks/soak_reader.py [--num-regions 200000] [--num-slides 200] [--side-px 8192] [--seed S] [--json]

Up to 20 slides are generated; the others are links to them, which the reader treats as separate slides. Batches of
`BATCH_SLIDES` random slides with `REGIONS_PER_SLIDE` regions each are read until the number is reached. The caches of
the reader are small, so that they are full before the first quarter, and any later growth is a leak. The exit status is
1 if the memory at the end is more than 10 % above that at the first quarter, or if more files are open.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from magnet.regions import from_level0
from magnet.windows import WindowRequest
from service.slides.reader import RegionReader
from service.synthetic.__main__ import main as make_slides

BATCH_SLIDES, REGIONS_PER_SLIDE = 8, 18
NUM_GENERATED = 20
MARKS = {"start": 0.0, "quarter": 0.25, "half": 0.5, "end": 1.0}

Figures = dict[str, float]


def prepare_slides(folder: Path, num: int, side_px: int, seed: int) -> list[str]:
    """Generate up to `NUM_GENERATED` slides and links to them; return all paths."""
    num_generated = min(num, NUM_GENERATED)
    with contextlib.redirect_stdout(sys.stderr):
        make_slides([str(folder), "--num-slides", str(num_generated), "--side-px", str(side_px), "--seed", str(seed)])
    paths = sorted((folder / "slides").iterdir())
    for n in range(num_generated, num):
        paths.append(folder / f"link_{n:04}.tif")
        paths[-1].symlink_to(paths[n % num_generated])
    return [str(path) for path in paths]


def draw_request(rng: np.random.Generator, side_px: int, out_px: int = 224) -> WindowRequest:
    """Draw the regions of a batch, with log-uniform sides from native resolution to the whole slide."""
    num = BATCH_SLIDES * REGIONS_PER_SLIDE
    side = np.exp(rng.uniform(np.log(out_px), np.log(side_px), num))
    box = np.stack([*rng.uniform(0, 1, (2, num)) * (side_px - side), side], axis=1)
    return WindowRequest(
        0, np.repeat(np.arange(BATCH_SLIDES), REGIONS_PER_SLIDE), from_level0(box, (side_px, side_px)), out_px, 8
    )


def soak(paths: list[str], num_regions: int, side_px: int, seed: int) -> Figures:
    """Read regions, and record memory and open files of the process at each mark."""
    process, rng = psutil.Process(), np.random.default_rng(seed)
    marks, figures, num_done, batch_regions = dict(MARKS), Figures(), 0, BATCH_SLIDES * REGIONS_PER_SLIDE
    start_s = time.perf_counter()
    with RegionReader(tile_cache_bytes=64 << 20, num_threads=2, header_cache_bytes=2 << 20) as reader:
        while marks:
            numbers = rng.choice(len(paths), BATCH_SLIDES, replace=False)
            reader.batch([paths[n] for n in numbers]).fetch(draw_request(rng, side_px))
            num_done += batch_regions
            for mark in [mark for mark, share in marks.items() if num_done >= share * num_regions]:
                del marks[mark]
                figures[f"rss_mb_{mark}"] = round(process.memory_info().rss / 1e6, 1)
                figures[f"open_files_{mark}"] = process.num_fds()
    figures |= {"regions": num_done, "slides": len(paths), "seconds": round(time.perf_counter() - start_s, 1)}
    return figures


def main() -> int:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-regions", type=int, default=200_000)
    parser.add_argument("--num-slides", type=int, default=200)
    parser.add_argument("--side-px", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args()
    if args.num_slides < BATCH_SLIDES:
        parser.error(f"--num-slides {args.num_slides}: must be at least {BATCH_SLIDES}")
    with tempfile.TemporaryDirectory() as folder:
        paths = prepare_slides(Path(folder), args.num_slides, args.side_px, args.seed)
        figures = soak(paths, args.num_regions, args.side_px, args.seed)
    grown = figures["rss_mb_end"] > 1.1 * figures["rss_mb_quarter"]
    flat = not grown and figures["open_files_end"] <= figures["open_files_quarter"] + 2
    result = {**figures, "flat": flat}
    print(json.dumps(result) if args.json else "\n".join(f"{key:>20} {value}" for key, value in result.items()))
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
