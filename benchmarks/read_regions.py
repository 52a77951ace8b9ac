"""Benchmark of reading: regions per second of our reader and of another one, with equal regions and output size.

    python benchmarks/read_regions.py SLIDE [--url U] [--num-regions N] [--out-px 224] [--seed S]
                                      [--against openslide|tiffslide|none] [--turn N] [--num-threads N] [--json]

Both readers run in this process and are called from one thread, in turns of `TURN` regions. Our reader is first, so
that it also has to load the file into the page cache. The conditions for each reader:

- Tile caches are cold in each turn. Our cache is off, so that a call shares tiles only among its regions. The other
  reader is opened again in each turn; it may use its cache of default size within the turn.
- Both read the header before the clock starts. One turn with other regions, which is not counted, warms up imports,
  memory and connections of both.
- Our reader gets a turn in one call, which is its purpose. The others have no such call and get one region after the
  other. With ``--turn 1`` our reader is called in this way too.
- On a local file our reader works in the calling thread only. Over a network its threads keep `--num-threads` requests
  in flight (1: one after the other), which the other reader cannot do.
- Both reduce their pixels to `out_px` by the same function, and its time is counted for both.

`cpu_over_decode` is the CPU time of the process during our reads (all threads, without the reduction) divided by the
CPU time for decoding the tiles of each turn with the same library, each position of the level once.
`cpu_over_distinct_decode` is stricter: tiles that refer to the same bytes of the file, as in a generated slide, count
once, because an ideal reader decodes them once (as ours does). The two are equal if each tile is stored separately.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import imagecodecs
import numpy as np
import openslide
import tifffile
import tiffslide
import torch
from numpy.typing import NDArray
from torch.nn import functional

from magnet.regions import from_level0, to_level0
from magnet.windows import WindowRequest, Windows
from service.slides.planning import clip_to_level, find_tiles, plan_windows
from service.slides.reader import RegionReader, SlideBatch
from service.slides.slide import SlideInfo
from service.storage.counters import ReadCounters

TURN = 144
"""Regions of a turn: one request of the last layer of four (3, 2, 3, 2) zooms, a micro-batch of the paper."""
MARGIN_PX = 1
"""Virtual pixels around each region."""

Images = list[NDArray[np.uint8]]


@dataclass
class Totals:
    """Sums over the counted turns."""

    ours_s: float = 0.0
    other_s: float = 0.0
    read_cpu_s: float = 0.0
    decode_cpu_s: float = 0.0
    distinct_decode_cpu_s: float = 0.0
    bytes: int = 0
    requests: int = 0
    difference: list[float] = field(default_factory=list)


def draw_regions(info: SlideInfo, num: int, out_px: int, seed: int) -> NDArray[np.float64]:
    """Draw (N, 3) regions inside the slide, with log-uniform sides from native resolution to a quarter of the slide."""
    rng = np.random.default_rng(seed)
    wide, high = info.size_px
    longest = min(max(wide, high) / 4, wide, high)
    side = np.exp(rng.uniform(np.log(out_px), np.log(max(longest, out_px)), num))
    x, y = rng.uniform(0, 1, num) * (wide - side), rng.uniform(0, 1, num) * (high - side)
    return from_level0(np.stack([x, y, side], axis=1), info.size_px)


def resize(windows: Windows, region: NDArray[np.float64], out_px: int) -> Images:
    """Crop each window to its region, to the nearest pixel, and reduce it to the output size."""
    left, top, px_w, px_h = windows.place.T
    s, x, y = region.T
    edges = [(x - s - left) / px_w, (y - s - top) / px_h, (x + s - left) / px_w, (y + s - top) / px_h]
    boxes = np.rint(np.stack(edges, axis=1)).astype(int).tolist()
    return [
        reduce(pixels[y0:y1, x0:x1], out_px) for pixels, (x0, y0, x1, y1) in zip(windows.pixels, boxes, strict=True)
    ]


def reduce(pixels: NDArray[np.uint8], out_px: int) -> NDArray[np.uint8]:
    """Reduce an image (H, W, 3) to the output size with antialiasing, fast enough that reading dominates."""
    nchw = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]  # torch is slower on a view
    small = functional.interpolate(nchw, (out_px, out_px), mode="bilinear", align_corners=False, antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def open_other_reader(kind: str, uri: str, info: SlideInfo) -> Callable[[NDArray[np.float64], int], Images]:
    """Open the other reader; return a function that reads regions one after the other by the OpenSlide interface."""
    slide = openslide.OpenSlide(uri) if kind == "openslide" else tiffslide.open_slide(uri)
    assert slide.level_count  # tiffslide reads the header only on demand

    def read(region: NDArray[np.float64], out_px: int) -> Images:
        images = []
        for x, y, side in to_level0(region, info.size_px).tolist():
            level = slide.get_best_level_for_downsample(side / out_px * 1.0001)
            step = slide.level_downsamples[level]
            left, top = round(x / step), round(y / step)
            size = round((x + side) / step) - left, round((y + side) / step) - top
            image = slide.read_region((round(left * step), round(top * step)), level, size).convert("RGB")
            images.append(reduce(np.array(image), out_px))
        return images

    return read


class BareDecode:
    """Decoding of the JPEG tiles that regions need, without any other work."""

    def __init__(self, path: str) -> None:
        self._file = tifffile.TiffFile(path)
        self._levels = [level.keyframe for level in self._file.series[0].levels]

    def cpu_s(self, batch: SlideBatch, region: NDArray[np.float64], out_px: int) -> tuple[float, float]:
        """Return the CPU seconds to decode each needed tile once, and to decode tiles with equal bytes once."""
        grids = batch.grids(0)
        plan = plan_windows(batch.info[0].size_px, grids, region, out_px, MARGIN_PX)
        positions = set()
        for level, factor, rect in zip(plan.level.tolist(), plan.factor.tolist(), plan.rect.tolist(), strict=True):
            inside = find_tiles(clip_to_level(rect, factor, grids[level].size_px), grids[level])
            positions |= {(level, tile) for tile in inside.tolist()}
        tiles = Counter(self._find_bytes(*position) for position in positions)
        every_s = distinct_s = 0.0
        for (level, offset, length), times in sorted(tiles.items()):
            seconds = [self._measure_decode_s(level, self._read(level, offset, length)) for _ in range(times)]
            every_s += sum(seconds)
            distinct_s += seconds[0]
        return every_s, distinct_s

    def _find_bytes(self, level: int, tile: int) -> tuple[int, int, int]:
        page = self._levels[level]
        return level, page.dataoffsets[tile], page.databytecounts[tile]

    def _measure_decode_s(self, level: int, data: bytes) -> float:
        page = self._levels[level]
        space = "YCBCR" if page.photometric == 6 else "RGB"
        start_s = time.process_time()
        imagecodecs.jpeg8_decode(data, tables=page.jpegtables, colorspace=space, outcolorspace="RGB")
        return time.process_time() - start_s

    def _read(self, level: int, offset: int, length: int) -> bytes:
        page = self._levels[level]
        if page.compression != tifffile.COMPRESSION.JPEG:
            raise SystemExit(f"cpu_over_decode needs JPEG tiles, but the slide has compression {page.compression}")
        self._file.filehandle.seek(offset)
        return self._file.filehandle.read(length)


def run_our_turn(
    totals: Totals, batch: SlideBatch, bare: BareDecode, region: NDArray[np.float64], out_px: int
) -> Images:
    """Read the regions with our reader, and decode the same tiles."""
    batch.counters[0] = ReadCounters()
    request = WindowRequest(0, np.zeros(len(region), dtype=np.int64), region, out_px, MARGIN_PX)
    start_s, cpu_began = time.perf_counter(), time.process_time()
    windows = batch.fetch(request)
    totals.read_cpu_s += time.process_time() - cpu_began
    images = resize(windows, region, out_px)
    totals.ours_s += time.perf_counter() - start_s
    totals.bytes += batch.counters[0].bytes
    totals.requests += batch.counters[0].requests
    every_s, distinct_s = bare.cpu_s(batch, region, out_px)
    totals.decode_cpu_s += every_s
    totals.distinct_decode_cpu_s += distinct_s
    return images


def run_other_turn(
    totals: Totals, args: argparse.Namespace, uri: str, info: SlideInfo, region: NDArray[np.float64], ours: Images
) -> None:
    """Read the regions with the other reader, and compare its images with ours."""
    read = open_other_reader(args.against, uri, info)
    start_s = time.perf_counter()
    theirs = read(region, args.out_px)
    totals.other_s += time.perf_counter() - start_s
    totals.difference += [float(np.abs(a.astype(float) - b).mean()) for a, b in zip(ours, theirs, strict=True)]


def measure(args: argparse.Namespace) -> dict[str, float | int | str | None]:
    """Run all turns."""
    uri = args.url or args.slide
    num_threads = args.num_threads or (64 if args.url else 1)
    bare, totals = BareDecode(args.slide), Totals()
    with RegionReader(tile_cache_bytes=0, num_threads=num_threads) as reader:
        batch = reader.batch([uri])
        info = batch.info[0]
        turns = [draw_regions(info, args.turn, args.out_px, args.seed + 1)]  # warms up imports, memory and connections
        region = draw_regions(info, args.num_regions, args.out_px, args.seed)
        turns += [region[start : start + args.turn] for start in range(0, len(region), args.turn)]
        for n, part in enumerate(turns):
            totals = totals if n > 1 else Totals()  # the first turn is not counted
            ours = run_our_turn(totals, batch, bare, part, args.out_px)
            if args.against != "none":
                run_other_turn(totals, args, uri, info, part, ours)
    return summarise(totals, len(region), args.against)


def summarise(totals: Totals, num: int, against: str) -> dict[str, float | int | str | None]:
    """Compute the figures; those of the comparison are None without another reader."""
    compared = against != "none"
    return {
        "against": against,
        "regions": num,
        "ours_regions_per_s": round(num / totals.ours_s, 2),
        "other_regions_per_s": round(num / totals.other_s, 2) if compared else None,
        "ratio": round(totals.other_s / totals.ours_s, 2) if compared else None,
        "cpu_over_decode": round(totals.read_cpu_s / totals.decode_cpu_s, 3),
        "cpu_over_distinct_decode": round(totals.read_cpu_s / totals.distinct_decode_cpu_s, 3),
        "bytes": totals.bytes,
        "requests": totals.requests,
        "max_abs_difference_mean": round(max(totals.difference), 3) if compared else None,
    }


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", help="path of a tiled TIFF with JPEG tiles")
    parser.add_argument("--url", help="URL from which both readers read the same slide")
    parser.add_argument("--num-regions", type=int, default=256)
    parser.add_argument("--out-px", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turn", type=int, default=TURN, help=f"regions per turn ({TURN})")
    parser.add_argument("--num-threads", type=int, help="threads of our reader (1 for a file, 64 with --url)")
    parser.add_argument("--against", choices=("openslide", "tiffslide", "none"), default="openslide")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(args)
    print(json.dumps(result) if args.json else "\n".join(f"{key:>26} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
