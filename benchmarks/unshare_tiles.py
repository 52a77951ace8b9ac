"""Copy a generated slide so that every tile has bytes of its own, as in a slide from a scanner.

    python benchmarks/unshare_tiles.py SLIDE OUT

Generated slides store equal tiles once. On the copy no reader gains from that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tifffile

from service.synthetic.tiff import PyramidWriter


def main() -> None:
    """Copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, help="made by service.synthetic")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    data = args.slide.read_bytes()
    with tifffile.TiffFile(args.slide) as file, args.out.open("wb") as out:
        levels = [level.keyframe for level in file.series[0].levels]
        writer = PyramidWriter(out, sum(len(level.dataoffsets) for level in levels))
        for n, level in enumerate(levels):
            tiles = zip(level.dataoffsets, level.databytecounts, strict=True)
            places = [writer.add_tile(data[offset : offset + length]) for offset, length in tiles]
            size = level.imagewidth, level.imagelength
            writer.add_level(size, np.array(places, dtype=np.int64), 0.25 * 2**n, f"level {n}", reduced=n > 0)


if __name__ == "__main__":
    main()
