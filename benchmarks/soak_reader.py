"""A long run of one reader over many slides: its memory and open files must stay flat.

    python benchmarks/soak_reader.py [--num-regions 200000] [--num-slides 200] [--side-px 8192] [--seed S] [--json]

Makes up to 20 slides and lets the others be links to them, which the reader takes for slides of their own. Batches of
`SLIDES_AT_A_TIME` random slides with `REGIONS_EACH` regions each are read until the number is reached. The reader's
caches are set small, so that they are full before the first quarter and what grows later is a leak. Exit status 1 if
memory at the end is 10 % above that at the first quarter, or more files are open.
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

SLIDES_AT_A_TIME, REGIONS_EACH = 8, 18
NUM_MADE = 20
MARKS = {"start": 0.0, "quarter": 0.25, "half": 0.5, "end": 1.0}

Figures = dict[str, float]


def slides(folder: Path, num: int, side_px: int, seed: int) -> list[str]:
    """Paths of the slides, the first `NUM_MADE` of them real."""
    made = min(num, NUM_MADE)
    with contextlib.redirect_stdout(sys.stderr):
        make_slides([str(folder), "--num-slides", str(made), "--side-px", str(side_px), "--seed", str(seed)])
    paths = sorted((folder / "slides").iterdir())
    for n in range(made, num):
        paths.append(folder / f"link_{n:04}.tif")
        paths[-1].symlink_to(paths[n % made])
    return [str(path) for path in paths]


def random_ask(rng: np.random.Generator, side_px: int, out_px: int = 224) -> WindowRequest:
    """Regions of a batch, sides log-uniform from native resolution to the whole slide."""
    num = SLIDES_AT_A_TIME * REGIONS_EACH
    side = np.exp(rng.uniform(np.log(out_px), np.log(side_px), num))
    box = np.stack([*rng.uniform(0, 1, (2, num)) * (side_px - side), side], axis=1)
    return WindowRequest(
        0, np.repeat(np.arange(SLIDES_AT_A_TIME), REGIONS_EACH), from_level0(box, (side_px, side_px)), out_px, 8
    )


def soak(paths: list[str], num_regions: int, side_px: int, seed: int) -> Figures:
    """Read, and note what the process holds at each mark."""
    process, rng = psutil.Process(), np.random.default_rng(seed)
    marks, figures, num_done, num_asked = dict(MARKS), Figures(), 0, SLIDES_AT_A_TIME * REGIONS_EACH
    began = time.perf_counter()
    with RegionReader(tile_cache_bytes=64 << 20, num_threads=2, header_cache_bytes=2 << 20) as reader:
        while marks:
            chosen = rng.choice(len(paths), SLIDES_AT_A_TIME, replace=False)
            reader.batch([paths[n] for n in chosen]).fetch(random_ask(rng, side_px))
            num_done += num_asked
            for mark in [mark for mark, share in marks.items() if num_done >= share * num_regions]:
                del marks[mark]
                figures[f"rss_mb_{mark}"] = round(process.memory_info().rss / 1e6, 1)
                figures[f"open_files_{mark}"] = process.num_fds()
    figures |= {"regions": num_done, "slides": len(paths), "seconds": round(time.perf_counter() - began, 1)}
    return figures


def main() -> int:
    """Soak and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-regions", type=int, default=200_000)
    parser.add_argument("--num-slides", type=int, default=200)
    parser.add_argument("--side-px", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args()
    if args.num_slides < SLIDES_AT_A_TIME:
        parser.error(f"--num-slides {args.num_slides}: must be at least {SLIDES_AT_A_TIME}")
    with tempfile.TemporaryDirectory() as folder:
        paths = slides(Path(folder), args.num_slides, args.side_px, args.seed)
        figures = soak(paths, args.num_regions, args.side_px, args.seed)
    grown = figures["rss_mb_end"] > 1.1 * figures["rss_mb_quarter"]
    flat = not grown and figures["open_files_end"] <= figures["open_files_quarter"] + 2
    result = {**figures, "flat": flat}
    print(json.dumps(result) if args.json else "\n".join(f"{key:>20} {value}" for key, value in result.items()))
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
