"""Regions per second of our reader and of another one, on the same regions and to the same output size.

    python benchmarks/read_regions.py SLIDE [--url U] [--num-regions N] [--out-px 224] [--seed S]
                                      [--against openslide|tiffslide|none] [--turn N] [--num-threads N] [--json]

Both run in this process, called from one thread, in turns of `TURN` regions, ours first, so that it also brings the
file into the page cache. What each is given, and what it is not:

- Caches of tiles are cold in each turn: ours is off, so that a call shares tiles only among its own regions; the other
  reader is opened anew, with its own cache at its usual size, which it may use within the turn.
- Headers are read before the clock starts, by both; one turn on other regions warms imports, memory and connections of
  both before anything counts.
- We ask for a turn in one call, which is what our reader is for; the others have no such call and get one region after
  the other. With ``--turn 1`` ours is called like that too.
- On a local file our reader works in the calling thread alone; over a network its threads keep `--num-threads`
  requests under way (1: one after the other), as the other reader cannot.
- Both reduce what they read to `out_px` by the same function, whose time counts for both.

`cpu_over_decode` is the CPU time of the process during our reads (all threads; windows made, not reduced) over the CPU
time of decoding, by the same library, the tiles that each turn needs, each place of the level once, and nothing else.
`cpu_over_distinct_decode` is stricter: tiles that name the same bytes of the file count once, as in a generated slide,
since an ideal reader decodes them once (ours does). The two are the same where every tile is stored for itself.
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
"""Regions of a turn: what the last layer of four (3, 2, 3, 2) zooms, a micro-batch of the paper, asks for at once."""
MARGIN_PX = 1

Images = list[NDArray[np.uint8]]


@dataclass
class Totals:
    """What the turns took."""

    ours_s: float = 0.0
    other_s: float = 0.0
    read_cpu_s: float = 0.0
    decode_cpu_s: float = 0.0
    distinct_decode_cpu_s: float = 0.0
    bytes: int = 0
    requests: int = 0
    difference: list[float] = field(default_factory=list)


def random_regions(info: SlideInfo, num: int, out_px: int, seed: int) -> NDArray[np.float64]:
    """(N, 3) regions inside the slide, sides log-uniform from native resolution to a quarter of it."""
    rng = np.random.default_rng(seed)
    wide, high = info.size_px
    longest = min(max(wide, high) / 4, wide, high)
    side = np.exp(rng.uniform(np.log(out_px), np.log(max(longest, out_px)), num))
    x, y = rng.uniform(0, 1, num) * (wide - side), rng.uniform(0, 1, num) * (high - side)
    return from_level0(np.stack([x, y, side], axis=1), info.size_px)


def resized(windows: Windows, region: NDArray[np.float64], out_px: int) -> Images:
    """Each window cut to its region, to the nearest pixel, and reduced to the output size."""
    left, top, px_w, px_h = windows.place.T
    s, x, y = region.T
    edges = [(x - s - left) / px_w, (y - s - top) / px_h, (x + s - left) / px_w, (y + s - top) / px_h]
    boxes = np.rint(np.stack(edges, axis=1)).astype(int).tolist()
    return [
        reduced(pixels[y0:y1, x0:x1], out_px) for pixels, (x0, y0, x1, y1) in zip(windows.pixels, boxes, strict=True)
    ]


def reduced(pixels: NDArray[np.uint8], out_px: int) -> NDArray[np.uint8]:
    """A picture (H, W, 3) at the output size, antialiased; the fastest way at hand, so that reading dominates."""
    nchw = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]  # torch is slower on a cut-out
    small = functional.interpolate(nchw, (out_px, out_px), mode="bilinear", align_corners=False, antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def other_reader(kind: str, place: str, info: SlideInfo) -> Callable[[NDArray[np.float64], int], Images]:
    """Reads regions one after the other through the OpenSlide interface, freshly opened."""
    slide = openslide.OpenSlide(place) if kind == "openslide" else tiffslide.open_slide(place)
    assert slide.level_count  # tiffslide reads the header only when asked

    def read(region: NDArray[np.float64], out_px: int) -> Images:
        images = []
        for x, y, side in to_level0(region, info.size_px).tolist():
            level = slide.get_best_level_for_downsample(side / out_px * 1.0001)
            step = slide.level_downsamples[level]
            left, top = round(x / step), round(y / step)
            size = round((x + side) / step) - left, round((y + side) / step) - top
            picture = slide.read_region((round(left * step), round(top * step)), level, size).convert("RGB")
            images.append(reduced(np.array(picture), out_px))
        return images

    return read


class BareDecode:
    """The JPEG tiles that regions need, decoded and nothing else."""

    def __init__(self, path: str) -> None:
        self._file = tifffile.TiffFile(path)
        self._levels = [level.keyframe for level in self._file.series[0].levels]

    def cpu_s(self, batch: SlideBatch, region: NDArray[np.float64], out_px: int) -> tuple[float, float]:
        """CPU seconds to decode each needed tile once, and to decode each of their different bytes once."""
        grids = batch.grids(0)
        plan = plan_windows(batch.info[0].size_px, grids, region, out_px, MARGIN_PX)
        places = set()
        for level, factor, rect in zip(plan.level.tolist(), plan.factor.tolist(), plan.rect.tolist(), strict=True):
            inside = find_tiles(clip_to_level(rect, factor, grids[level].size_px), grids[level])
            places |= {(level, tile) for tile in inside.tolist()}
        tiles = Counter(self._stored(*place) for place in places)
        every_s = distinct_s = 0.0
        for (level, offset, length), times in sorted(tiles.items()):
            seconds = [self._decode_s(level, self._bytes(level, offset, length)) for _ in range(times)]
            every_s += sum(seconds)
            distinct_s += seconds[0]
        return every_s, distinct_s

    def _stored(self, level: int, tile: int) -> tuple[int, int, int]:
        page = self._levels[level]
        return level, page.dataoffsets[tile], page.databytecounts[tile]

    def _decode_s(self, level: int, data: bytes) -> float:
        page = self._levels[level]
        space = "YCBCR" if page.photometric == 6 else "RGB"
        start_s = time.process_time()
        imagecodecs.jpeg8_decode(data, tables=page.jpegtables, colorspace=space, outcolorspace="RGB")
        return time.process_time() - start_s

    def _bytes(self, level: int, offset: int, length: int) -> bytes:
        page = self._levels[level]
        if page.compression != tifffile.COMPRESSION.JPEG:
            raise SystemExit(f"cpu_over_decode is measured on JPEG tiles, not on compression {page.compression}")
        self._file.filehandle.seek(offset)
        return self._file.filehandle.read(length)


def our_turn(totals: Totals, batch: SlideBatch, bare: BareDecode, region: NDArray[np.float64], out_px: int) -> Images:
    """Our reader's turn, and the decode of the same tiles."""
    batch.counters[0] = ReadCounters()
    request = WindowRequest(0, np.zeros(len(region), dtype=np.int64), region, out_px, MARGIN_PX)
    start_s, cpu_began = time.perf_counter(), time.process_time()
    windows = batch.fetch(request)
    totals.read_cpu_s += time.process_time() - cpu_began
    images = resized(windows, region, out_px)
    totals.ours_s += time.perf_counter() - start_s
    totals.bytes += batch.counters[0].bytes
    totals.requests += batch.counters[0].requests
    every_s, distinct_s = bare.cpu_s(batch, region, out_px)
    totals.decode_cpu_s += every_s
    totals.distinct_decode_cpu_s += distinct_s
    return images


def other_turn(
    totals: Totals, args: argparse.Namespace, place: str, info: SlideInfo, region: NDArray[np.float64], ours: Images
) -> None:
    """The other reader's turn, and how far its pictures are from ours."""
    read = other_reader(args.against, place, info)
    start_s = time.perf_counter()
    theirs = read(region, args.out_px)
    totals.other_s += time.perf_counter() - start_s
    totals.difference += [float(np.abs(a.astype(float) - b).mean()) for a, b in zip(ours, theirs, strict=True)]


def measure(args: argparse.Namespace) -> dict[str, float | int | str | None]:
    """All turns."""
    place = args.url or args.slide
    num_threads = args.num_threads or (64 if args.url else 1)
    bare, totals = BareDecode(args.slide), Totals()
    with RegionReader(tile_cache_bytes=0, num_threads=num_threads) as reader:
        batch = reader.batch([place])
        info = batch.info[0]
        turns = [random_regions(info, args.turn, args.out_px, args.seed + 1)]  # warms memory, imports and connections
        region = random_regions(info, args.num_regions, args.out_px, args.seed)
        turns += [region[start : start + args.turn] for start in range(0, len(region), args.turn)]
        for n, part in enumerate(turns):
            totals = totals if n > 1 else Totals()
            ours = our_turn(totals, batch, bare, part, args.out_px)
            if args.against != "none":
                other_turn(totals, args, place, info, part, ours)
    return report(totals, len(region), args.against)


def report(totals: Totals, num: int, against: str) -> dict[str, float | int | str | None]:
    """The figures, None where nothing was compared."""
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
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", help="path of a tiled TIFF with JPEG tiles")
    parser.add_argument("--url", help="read the same slide from here instead, by both readers")
    parser.add_argument("--num-regions", type=int, default=256)
    parser.add_argument("--out-px", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turn", type=int, default=TURN, help=f"regions that a reader gets at a time ({TURN})")
    parser.add_argument("--num-threads", type=int, help="of our reader (1 locally, 64 with --url)")
    parser.add_argument("--against", choices=("openslide", "tiffslide", "none"), default="openslide")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(args)
    print(json.dumps(result) if args.json else "\n".join(f"{key:>26} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
